"""How resources in Google Cloud are recognized that Millrace created."""

from __future__ import annotations

# The label of all of them.
OWNER = {"created_by": "millrace"}
# The start of the names of the datasets that runs create for results of queries, one for each
# location.
QUERY_DATASETS = "millrace_queries_"
