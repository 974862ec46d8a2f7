"""Engines: the docker that builds and smokes: the user's, a private one in namespaces, a QEMU machine.

Takes a lock and a cache and gives a docker client.
"""
