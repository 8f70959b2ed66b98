"""Media files: MP4 segments, reference images and videos, thumbnails and latents."""
