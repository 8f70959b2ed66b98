"""Model implementations and the registry of architectures."""
