"""What a check of `doctor` found, and how checks look at things without ever failing themselves."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Literal

from dind_k3s.root import at

State = Literal["ok", "warn", "fail"]
LIBRARY = "/usr/local/lib/dind-k3s"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's result."""

    id: str
    state: State
    evidence: str
    remedy: str = ""


def finding(id: str, good: bool, evidence: str, remedy: str, otherwise: State = "fail") -> Finding:
    """A remedy only where one is needed."""
    if good:
        return Finding(id=id, state="ok", evidence=evidence)
    return Finding(id=id, state=otherwise, evidence=evidence, remedy=remedy)


def text(path: str) -> str:
    """The file's text without the white space around it; empty when it cannot be read."""
    try:
        return at(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def number(path: str) -> int | None:
    """The number in a file; None when it holds none."""
    found = text(path)
    return int(found) if found.isdecimal() else None


def output(*command: str, timeout: float = 15) -> tuple[int, str]:
    """Exit code and all that was written, without the white space around it; 127 when it did not run to its end."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return 127, f"{command[0]} said nothing for {timeout:g} s"
    except OSError as error:
        return 127, f"{command[0]}: {error.strerror}"
    return done.returncode, (done.stdout + done.stderr).strip()


def tried(script: str, *parts: str) -> tuple[int, str]:
    """Run shell text after parts of the start's own library: what the start tries is what is tried here."""
    sources = "".join(f"source {LIBRARY}/{part}.sh\n" for part in ("say", *parts))
    return output("bash", "-uc", f"{sources}{script}")


def size(count: float) -> str:
    """Bytes, as people read them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
