"""What a test showed: accounts, latencies, levels, and what follows from them."""
