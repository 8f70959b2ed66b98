"""Frames to and from files: MP4 segments, reference images and videos."""
