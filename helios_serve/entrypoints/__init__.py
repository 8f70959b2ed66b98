"""What users touch: the HTTP API and the command line."""
