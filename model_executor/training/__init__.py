"""Trains the built-in model nano by Helios' own recipe. A developer's tool: serving imports none."""
