"""The model package and the ModelHandlers that run it over Arrow record batches.

Nothing is imported here: the manifest can be read without torch.
"""
