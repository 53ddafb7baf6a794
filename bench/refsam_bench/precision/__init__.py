"""What half precision does to the results of a bundle."""
