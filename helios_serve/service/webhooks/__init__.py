"""Webhooks: event delivery and signatures."""
