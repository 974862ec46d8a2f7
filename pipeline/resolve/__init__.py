"""Stage `resolve`: upstream's channels and files, independent witnesses, Debian packages by apt.

Takes versions.yaml and the previous lock; returns a lock.
"""
