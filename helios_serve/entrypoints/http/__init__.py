"""OpenAI-compatible video API over HTTP."""
