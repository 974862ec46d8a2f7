"""What configure is going to write and say, and how it refuses: nothing is written when there is a mistake."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from dind_k3s.redact import redacted

# The words of a switch, in any case.
ON = ("1", "true", "yes", "on")
OFF = ("0", "false", "no", "off")


class Mistake(Exception):
    """Something that the user has to change: a message for each thing, which names the variable or the file."""

    def __init__(self, *messages: str) -> None:
        self.messages = tuple(shown(message, 1000) for message in messages)
        super().__init__("\n".join(self.messages))


def refuse(mistake: Mistake) -> int:
    """Print each message of it; return the exit code."""
    for message in mistake.messages:
        print(f"dind-k3s: error: {message}", file=sys.stderr)
    return 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that gets written, and what is said about it."""

    files: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)  # a link never takes the place of a file of the user
    messages: list[str] = field(default_factory=list)


def shown(value: str, limit: int = 80) -> str:
    """A value as part of a message: on one line, whatever is in it, not longer than one reads, without passwords."""
    value = redacted(value)  # before it is cut, and with it what shows a password
    if len(value) > limit:
        value = f"{value[:limit]}… ({len(value)} characters)"
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in value)


def words(name: str, env: Mapping[str, str]) -> list[str]:
    """The variable's words, with quotes and backslashes as in a shell, but nothing in it is executed."""
    try:
        return shlex.split(env.get(name, ""))
    except ValueError as error:
        raise Mistake(f"{name} cannot be split into words ({error}): {shown(env[name])}") from None


def asked(env: Mapping[str, str], name: str) -> bool:
    """Return whether a switch is on. variables.py refuses every other word; say.sh has the same function."""
    return env.get(name, "").lower() not in ("", *OFF)
