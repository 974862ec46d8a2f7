"""The one kind of expected failure: a sentence for the user, exit code 1 as every failure of k3s."""


class Failure(Exception):
    """Something that the user can put right; its text says what and where."""
