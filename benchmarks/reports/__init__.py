"""Reports of results: HTML pages with plots."""
