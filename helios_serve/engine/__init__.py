"""The engine: requests in, scheduled steps to executors, chunks of video out."""
