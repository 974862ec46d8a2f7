"""Scan, push, sign, tag and verify the built image; then pull, roll back, retention and release notes.

Takes the image and the reports in dist/; writes to registries and dist/release.json.
"""
