"""Webhooks: where events are sent and how they are signed."""
