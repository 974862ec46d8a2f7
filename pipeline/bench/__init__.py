"""Benchmarks: what the pipeline and the image cost, compared with tools made for one job each (docs/benchmarks/)."""
