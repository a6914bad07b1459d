"""Load model files as torch modules, without running code from them."""
