"""Benchmarks: what the pipeline costs beside tools made for one job each (docs/benchmarks/)."""
