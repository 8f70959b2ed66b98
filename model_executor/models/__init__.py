"""Models: the Helios transformer, its text encoder and VAE, and built-in checkpoints."""
