"""BigQuery: tables and queries read as Arrow; tables written by a run, or as rows arrive."""
