"""The label by which what this project makes in Google Cloud is known as its own."""

from __future__ import annotations

OWNER = {"created_by": "millrace"}
