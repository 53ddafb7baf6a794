"""Files of tensors that are read without unpickling code."""
