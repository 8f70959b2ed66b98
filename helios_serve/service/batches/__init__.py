"""Batches: input files, and the runner that makes their videos."""
