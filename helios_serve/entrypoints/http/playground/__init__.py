"""The playground: one static page over the public API, without a build step."""
