"""The image's programs in Python: the standard library alone, but for keeper.py, which builds on supervisor."""
