"""Model packages, and the ModelHandlers that run models over Arrow record batches.

This module imports nothing, so that a program can read manifests without importing torch.
"""
