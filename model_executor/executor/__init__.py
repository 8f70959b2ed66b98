"""Executors, which run workers as threads, as child processes or as Ray actors."""
