"""Benchmarks: of speed (`kiwi bench speed`)."""
