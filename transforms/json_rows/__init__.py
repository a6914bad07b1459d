"""Rows of JSON: values to columns, columns to objects."""
