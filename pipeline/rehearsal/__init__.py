"""What a release needs from outside, made on this machine: origin, registries, scanner, stubs (docs/rehearsal.md).

Takes package registries and gives a whole release in dist/rehearsal/.
"""
