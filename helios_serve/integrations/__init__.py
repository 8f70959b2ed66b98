"""Adapters that run the engine inside other servers. Each imports its server lazily."""
