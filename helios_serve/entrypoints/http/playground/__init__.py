"""The playground: a static page that uses the public API. It has no build step."""
