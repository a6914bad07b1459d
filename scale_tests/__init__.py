"""Scale tests: open-loop load, accounts of every message, latencies and what follows from them."""
