"""The servers that are measured: jobs over HTTP, live sessions over a WebSocket."""
