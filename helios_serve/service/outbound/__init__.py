"""HTTP requests made on a client's behalf, restricted to allowed public hosts."""
