"""What the server does, apart from HTTP: videos, realtime sessions, batches, tenants, webhooks."""
