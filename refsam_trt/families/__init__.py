"""One module per model family: its tensors, and what it does with its graphs between frames."""
