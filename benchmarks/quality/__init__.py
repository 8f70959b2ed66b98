"""HeliosBench, and measures of our own: what videos look like, not how fast they come."""
