"""Shared by every package: errors, log, platforms, digests, image names, records in dist/, the cache.

Takes and returns values and files; imports nothing else of the pipeline.
"""
