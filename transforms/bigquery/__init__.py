"""BigQuery: a table or a query read as Arrow, a table written by a run or as rows come."""
