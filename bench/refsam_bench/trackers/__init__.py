"""What is measured, behind one set of calls: engine, PyTorch reference, blind guess."""
