"""Helios (arXiv 2603.04379): transformer, schedules, samplers and conditioning."""
