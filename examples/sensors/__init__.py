"""How long machines will last: windows of readings of different lengths, and a regression."""
