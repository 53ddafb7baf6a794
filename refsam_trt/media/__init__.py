"""Frames of images, videos, cameras and streams."""
