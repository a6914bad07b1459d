"""Read JSON values into columns, and write columns as JSON objects."""
