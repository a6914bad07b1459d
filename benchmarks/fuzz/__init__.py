"""Fuzzing of the readers of files, from a seed."""
