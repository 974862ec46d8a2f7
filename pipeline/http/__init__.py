"""HTTP: one client with one policy for redirects, retries, limits, proxies, certificates; downloads; file:// folders.

Takes URLs; returns responses, or verified files in a folder.
"""
