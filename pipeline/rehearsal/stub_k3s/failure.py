"""The one kind of expected failure."""


class Failure(Exception):
    """What the user can put right; the text says what and where. The exit code is 1, as for every failure of k3s."""
