"""The `helios-serve` command."""
