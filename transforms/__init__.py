"""PTransforms over Arrow record batches: sources, validation, prediction, sinks.

Nothing is imported here: `import transforms.predict` costs only what it needs.
"""
