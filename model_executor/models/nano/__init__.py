"""nano, a tiny built-in Helios model with random weights."""
