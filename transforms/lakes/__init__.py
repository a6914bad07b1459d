"""Tables of Delta Lake and Apache Iceberg, read through their own libraries."""
