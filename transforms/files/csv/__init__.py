"""CSV: dialects, quotes, the bounds of rows, and parsing."""
