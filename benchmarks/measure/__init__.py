"""What was measured: session records, playback, statistics, summaries and results."""
