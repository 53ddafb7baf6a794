"""Does a model remember: track tokens of twins exchanged between frames."""
