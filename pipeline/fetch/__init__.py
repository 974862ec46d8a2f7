"""Stage `fetch`: the lock's files and the base image into the cache; vendored folders; measuring of mirrors.

Takes a lock; returns files by digest.
"""
