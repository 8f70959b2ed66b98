"""HTTP requests that the server sends on a client's behalf, restricted to allowed public hosts."""
