"""The label of all resources in Google Cloud that Millrace creates."""

from __future__ import annotations

OWNER = {"created_by": "millrace"}
