"""Dead letters read back, so that their rows are scored once more."""
