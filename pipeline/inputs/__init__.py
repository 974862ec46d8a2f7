"""Inputs: versions.yaml, the lock, evidence for digests, compatible versions.

Takes texts that people and `resolve` wrote; returns frozen records.
"""
