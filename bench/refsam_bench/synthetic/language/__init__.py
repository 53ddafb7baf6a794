"""What is said of the objects of a scene: meanings, which of them fit, and sentences."""
