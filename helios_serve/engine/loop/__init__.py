"""The synchronous engine: one `step` gives work to workers and collects what they return."""
