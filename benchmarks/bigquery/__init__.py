"""Tables: reading, writing, table to table."""
