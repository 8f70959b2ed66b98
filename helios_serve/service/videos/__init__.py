"""Videos: requests, objects, finished files and idempotency keys."""
