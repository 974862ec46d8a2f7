"""Reads the signatures and Sigstore bundles of vendors and of our images, and signs ours.

Takes bytes, digests and the expected identity; returns statements and bundles.
"""
