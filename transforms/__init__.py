"""PTransforms over Arrow record batches: sources, validation, prediction and sinks.

This package imports nothing, so `import transforms.predict` loads only what it needs.
"""
