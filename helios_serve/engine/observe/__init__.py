"""Metrics, gauges and traces of the engine."""
