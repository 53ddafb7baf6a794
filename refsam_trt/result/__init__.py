"""Masks and what is made of them: boxes, RLE, polygons, pictures, files."""
