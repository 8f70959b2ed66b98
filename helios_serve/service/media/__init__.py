"""Reference images and videos that clients upload or link to."""
