"""Stage `fetch`: the lock's files and the base image into the cache; vendored folders; what mirrors are worth.

Takes a lock and gives files by digest.
"""
