"""Persistent state: jobs, segments, snapshots, uploaded files, batches and API keys on disk."""
