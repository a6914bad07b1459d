"""Model files to torch modules, without running code from them."""
