"""Run batches on a CPU or on GPUs: lanes, precisions, and the number of rows of a pass.

It needs only numpy and torch, so that it can be measured on a machine without Beam.
"""
