"""Scheduling policy in plain Python: sessions, paged history, block tables. No torch, no I/O."""
