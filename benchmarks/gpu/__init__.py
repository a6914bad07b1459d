"""Measures models on a GPU, beside the limits of that GPU.

It needs torch and numpy, and pyarrow for the example, but neither Beam nor the other packages.
"""
