"""Measures a video server as its users experience it: load, metrics, results and reports.

Nothing here but `simulator` imports the engine: `helios-serve serve` never loads this package.
"""
