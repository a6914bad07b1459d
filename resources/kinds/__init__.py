"""What can be looked at, made and removed: one module for each Google Cloud service."""
