"""The names of all kinds, which the command line needs before Google's clients are imported."""

from __future__ import annotations

NAMES = (
    *("service", "account", "role", "bucket", "model", "files", "dataset", "table"),
    *("query_dataset", "topic", "subscription", "registry_model"),
)
JOB = "job"
# The kinds that cleanup takes: not APIs, which others may use, and not the model, which is a file.
REMOVABLE = (JOB, *(name for name in NAMES if name not in ("service", "model")))
