"""Words that every package uses: errors, log, platforms, digests, image names, records in dist/, the cache.

Takes and gives values and files; imports nothing else of the pipeline.
"""
