"""Trains the built-in model nano by Helios' own recipe: a tool for developers, not for serving."""
