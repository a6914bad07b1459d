"""Kills at random moments: what is lost, doubled or destroyed."""
