"""Model families: what each does with its graphs between frames."""
