"""Takes secrets out of text: known ones wherever they stand, others by what stands before them.

It takes out rather too much: what is lost is one word of a log, and what is left is published in somebody's bug report.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

GONE = "[redacted]"
_SHORTEST = 6  # a shorter value is also an ordinary word; it goes only where its name stands before it

_WORD = r"(?:token|passw(?:or)?d|passphrase|secret|credential|private[-_]?key|access[-_]?key|api[-_]?key|key-data|auth)"
_NAME = rf"[\w.-]*{_WORD}[\w.-]*"
_VALUE = r"""(?P<value>"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^\s"'{\[][^\s"']*)"""
_NAMED = re.compile(rf"""(?i)(?P<before>{_NAME}["']?[ \t]*[:=][ \t]*){_VALUE}""")
# With nothing but a space between, only a flag's: in prose anything follows upon «token».
_FLAG = re.compile(rf"(?i)(?P<before>--?{_NAME}[ \0\n]+)(?P<value>[^\s\0-][^\s\0]*)")
_LINE = re.compile(rf"""(?im)^[ \t-]*["']?{_NAME}["']?[ \t]*[:=][ \t]*(?P<value>\S.*?)[ \t,]*$""")
_IN_URL = re.compile(r"""(?i)(?P<before>\b[a-z][a-z0-9+.-]*://)(?P<value>[^\s/"']+)@""")
_SECRET_NAME = re.compile(rf"(?i){_WORD}|key$")

_PATTERNS = (
    # A private key, also one whose beginning or end was cut off.
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), GONE),
    (re.compile(r"\A[A-Za-z0-9+/=\s]*-----END [A-Z ]*PRIVATE KEY-----"), GONE),
    (_IN_URL, rf"\g<before>{GONE}@"),
    (re.compile(r"\bK10[0-9a-f]{16,}::[^\s\"']+"), GONE),  # k3s's tokens
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), GONE),  # JSON web tokens
    (re.compile(r"(?i)\b(authorization:?|bearer|basic)(\s+(?:bearer|basic)\s+|\s+)[\w.~+/=-]{8,}"), rf"\1\2{GONE}"),
    # PEM in base64, as kubeconfigs have it. Certificates look the same and are no loss.
    (re.compile(r"\bLS0tLS1CRUdJTi[A-Za-z0-9+/=]+"), GONE),
)
_NO_SECRETS = ("true", "false", "null", "none", "nil", "yes", "no", "")


class Redactor:
    """Knows values that must not be seen."""

    def __init__(self) -> None:
        self._values: set[str] = set()

    def learn(self, *values: str) -> None:
        """Values that are secret wherever they stand, and as they look in URLs and in base64."""
        for value in (value.strip().strip("\"'") for value in values):
            if len(value) >= _SHORTEST and value.lower() not in ("default", "enabled", "disabled", "allowed"):
                raw = value.encode(errors="surrogateescape")
                self._values |= {value, quote(raw, safe=""), base64.b64encode(raw).decode().rstrip("=")}

    def learn_text(self, text: str) -> None:
        """The values behind secrets' names in a configuration, in a variable, or in a command line."""
        for value in _behind_names(text):
            self.learn(value)
            with contextlib.suppress(ValueError):  # registries' `auth`: the base64 of USER:PASSWORD
                self.learn(base64.b64decode(value.strip("\"'"), validate=True).decode().partition(":")[2])
        for found in _IN_URL.finditer(text):
            self.learn(found["value"].partition(":")[2])

    def learn_environment(self, environment: Mapping[str, str]) -> None:
        """What variables say, by their names and by what they hold. Where one names a file, that is read."""
        for name, value in environment.items():
            if _SECRET_NAME.search(name):
                self.learn(value)
                self.learn_file(value)
            self.learn_text(value)

    def learn_file(self, path: str | Path) -> None:
        """A file that holds a secret and nothing else."""
        with contextlib.suppress(OSError, ValueError):
            if Path(path).is_file():
                self.learn(*Path(path).read_bytes()[:4096].decode(errors="replace").splitlines())

    def clean(self, text: str) -> str:
        """The text without any of it."""
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, GONE)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        for pattern in (_NAMED, _FLAG):
            text = pattern.sub(_without_value, text)
        return text


def _behind_names(text: str) -> Iterator[str]:
    for pattern in (_LINE, _NAMED, _FLAG):
        for match in pattern.finditer(text):
            if not _harmless(match["value"]):
                yield match["value"]


def _without_value(match: re.Match[str]) -> str:
    return match[0] if _harmless(match["value"]) else f"{match['before']}{GONE}"


def _harmless(value: str) -> bool:
    """A switch, or the path of a file, which says much and betrays nothing."""
    value = value.strip("\"'")
    return value.lower() in _NO_SECRETS or (value.startswith("/") and Path(value).exists())
