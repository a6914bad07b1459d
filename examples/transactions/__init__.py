"""The example: generated card transactions, an anomaly autoencoder and its training."""
