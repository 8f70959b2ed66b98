"""Adapters that run the engine inside other servers; each imports its server lazily."""
