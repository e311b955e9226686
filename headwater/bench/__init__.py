"""Benchmarks: our engine and its peers in turn, each run a fresh process, beside the limits measured in the same minutes."""
