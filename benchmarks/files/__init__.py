"""Files to files: Millrace, stock Beam and a plain loop."""
