"""Data sets that are drawn, not read: for tests, first steps and benchmarks."""
