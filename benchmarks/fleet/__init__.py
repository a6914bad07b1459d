"""Models a batch job of any size: its duration, its cost, and the limits that it meets."""
