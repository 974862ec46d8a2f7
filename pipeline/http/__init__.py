"""HTTP: one client with one policy for redirects, retries, bounds, proxies, certificates; downloads; file:// folders.

Takes URLs and gives answers, or verified files in a folder.
"""
