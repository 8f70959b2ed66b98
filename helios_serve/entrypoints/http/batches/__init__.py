"""Routes of batches and of the files they read and write."""
