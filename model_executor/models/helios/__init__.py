"""Helios: transformer, schedules, samplers and conditioning."""
