"""A whole release on this machine, in dist/rehearsal/, from package registries (docs/rehearsal.md).

Replaces the rest of the world: origin, registries, scanner, and stubs of k3s and its system images.
"""
