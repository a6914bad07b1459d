"""The kinds of resources: one module for each Google Cloud service."""
