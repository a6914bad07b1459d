"""The files of a run and of a stream: staged, put in place, and listed."""
