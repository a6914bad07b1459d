"""The names of all kinds, for a command line that answers before Google's clients are loaded."""

from __future__ import annotations

NAMES = (
    *("service", "account", "role", "bucket", "model", "files", "dataset", "table"),
    *("topic", "subscription", "registry_model"),
)
JOB = "job"
# What a user may choose: all but APIs, which others may use, and the model, which is a file.
REMOVABLE = (JOB, *(name for name in NAMES if name not in ("service", "model")))
