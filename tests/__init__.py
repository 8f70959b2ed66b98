"""The tests, and their helpers in `tests.support`."""
