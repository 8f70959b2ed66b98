"""The server's features, independent of HTTP: videos, realtime sessions, batches, tenants,
webhooks.
"""
