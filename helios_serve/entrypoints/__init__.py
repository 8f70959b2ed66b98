"""The interfaces for users: the HTTP API and the command line."""
