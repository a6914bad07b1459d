"""Declares, sets up, inspects and removes the Google Cloud resources of the pipelines.

Run it with `python -m resources plan | setup | status | cleanup`. The package imports neither Beam
nor torch.
"""
