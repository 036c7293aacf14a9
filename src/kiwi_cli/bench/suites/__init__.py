"""The benchmarks' items and where they come from."""
