"""Lines that may be printed: no password in them."""

from __future__ import annotations

import re

_USER = re.compile(r"://[^\s'\"]+@")
_FLAG = re.compile(r"(?<![\w/])(--?[\w-]*(?:token|password|secret|secret-key)[ =])('[^']*'|\S+)")


def redacted(text: str) -> str:
    """The text with *** for users in URLs and for values of flags that are secrets."""
    return _FLAG.sub(r"\1***", _USER.sub("://***@", text))
