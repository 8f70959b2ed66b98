"""The quality of videos: HeliosBench, and measures of our own."""
