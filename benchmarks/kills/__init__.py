"""Benchmark of kills at random moments, which counts lost and doubled rows."""
