"""The options of requests, workers and servers, each declared once."""
