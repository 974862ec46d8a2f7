"""What k3s is started as, by variables and by the container's own command."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from dind_k3s.plan import words
from dind_k3s.root import RUN, at

Role = Literal["server", "agent"]

COMMAND = f"{RUN}/k3s.command"  # the container's command where it is `server …` or `agent …`; a NUL ends each word


def command() -> list[str]:
    """The container's command, if it is one of rancher/k3s."""
    try:
        return [os.fsdecode(word) for word in at(COMMAND).read_bytes().split(b"\0")[:-1]]
    except OSError:
        return []


def role_and_flags(env: Mapping[str, str]) -> tuple[Role, list[str]]:
    """What k3s is started as, and its flags: those of K3S_ARGS, then those of the container's command, which wins."""
    role, args = "agent" if env.get("K3S_URL") else "server", words("K3S_ARGS", env)
    if args[:1] in (["server"], ["agent"]):
        role = args.pop(0)
    if asked := command():
        role, args = asked[0], [*args, *asked[1:]]
    return "agent" if role == "agent" else "server", args


def sources(env: Mapping[str, str]) -> str:
    """Where the user wrote k3s's flags, for messages."""
    given_in = ["K3S_ARGS"] if env.get("K3S_ARGS") else []
    return " and ".join([*given_in, *(["the container's command"] if command() else [])]) or "K3S_ARGS"
