"""Reference images and videos that clients send or point to."""
