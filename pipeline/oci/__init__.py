"""OCI layouts, indexes, layer file systems and their differences; a registry client with logins and referrers.

Takes image names, digests and files; returns documents and file systems, and writes to registries.
"""
