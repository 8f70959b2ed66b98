"""Routes of videos while they are made: events, HLS and the realtime WebSocket."""
