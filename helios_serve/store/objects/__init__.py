"""Object storage: copies of videos in a bucket, and the table that says which exist."""
