"""The asyncio engine: requests in, video chunks out, for several models at once."""
