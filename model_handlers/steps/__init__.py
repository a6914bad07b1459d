"""Steps: how columns of a source become tensors, and tensors become fields for people."""
