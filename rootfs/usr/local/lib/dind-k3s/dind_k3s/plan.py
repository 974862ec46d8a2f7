"""What configure is going to write and say, and how it refuses: nothing is written when there is a mistake."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field


class Mistake(Exception):
    """Something that the user has to change. The text is a sentence."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that gets written, and what is said about it."""

    files: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)  # a link never takes the place of a file of the user
    told: list[str] = field(default_factory=list)


def words(name: str, env: Mapping[str, str]) -> list[str]:
    """The variable's words, with quotes and backslashes as in a shell, but nothing in it is executed."""
    try:
        return shlex.split(env.get(name, ""))
    except ValueError as error:
        raise Mistake(f"{name} cannot be split into words ({error}): {env[name]}") from None


def asked(env: Mapping[str, str], name: str) -> bool:
    """Whether a switch is on."""
    return env.get(name, "").lower() not in ("", "0", "false", "no")
