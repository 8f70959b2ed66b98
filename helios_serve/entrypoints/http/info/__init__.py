"""Routes that describe the server and a tenant's usage."""
