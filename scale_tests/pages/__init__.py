"""The files and the page of a result, and comparisons."""
