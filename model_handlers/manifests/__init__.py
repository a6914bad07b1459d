"""The manifest of a model package: its parts, their checks, and its JSON."""
