"""Routes of running videos: events, HLS and the realtime WebSocket."""
