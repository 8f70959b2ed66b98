"""`helios-serve simulate`: a fleet in virtual time."""
