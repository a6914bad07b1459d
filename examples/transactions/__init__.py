"""Card transactions: a data generator, an anomaly autoencoder and its training."""
