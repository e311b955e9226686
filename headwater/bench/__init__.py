"""Benchmarks: our engine and its peers in turn, each run a fresh process, beside limits measured then and there."""
