"""Measurements: session records, playback, statistics, summaries and results."""
