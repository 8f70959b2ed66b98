"""What outlives a process: jobs, segments and snapshots on disk."""
