"""A tiny built-in Helios with random weights that runs anywhere."""
