"""Inputs: versions.yaml, the lock, why a digest is believed, which versions go together.

Takes the texts that people and `resolve` wrote and gives frozen records.
"""
