"""Stage `build`: bake file, buildx, its progress; and `reproduce`, the same build compared with what was published.

Takes a lock and the cache and gives an OCI layout with its record in dist/.
"""
