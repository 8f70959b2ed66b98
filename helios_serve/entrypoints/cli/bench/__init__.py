"""`helios-serve bench`: measures the speed of a video server."""
