"""What is inside a file, without running it: ELF headers, Go build information, archives.

Takes bytes; returns versions.
"""
