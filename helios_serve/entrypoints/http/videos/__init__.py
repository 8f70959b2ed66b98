"""Routes of videos and their content."""
