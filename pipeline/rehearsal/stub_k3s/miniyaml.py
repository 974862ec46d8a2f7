"""The part of YAML that k3s configurations use: one mapping of scalars and lists of scalars.

Everything else (nested mappings, anchors, tags, block scalars, several documents) is refused with file and line.
Scalars stay text: their reader decides on the meaning of a 1.30 or a `no`.

PyYAML would be slow: in a zipapp its 5,000 lines are compiled at each start, under emulation too.
"""

from __future__ import annotations

import json
import re

from .errors import Failure

Value = str | list[str]

_QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^']|'')*'"""
_KEY = re.compile(r"""(?:"([^"\\]*)"|'([^']*)'|([A-Za-z0-9][\w.+-]*))\s*:(?:\s+|$)""")
_ITEM = re.compile(r" *-\s+(.*)")
_FLOW = re.compile(rf"""\[((?:{_QUOTED}|[^"'\]])*)\]\s*(?:#.*)?""")
_FLOW_ITEM = re.compile(rf"""(?:{_QUOTED}|[^,"'])+""")


def parse(text: str, where: str) -> dict[str, Value]:
    """Parse a configuration; `where`: the name of the file, for messages. Raises Failure."""
    values: dict[str, Value] = {}
    key = ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.rstrip()
        if not line.strip() or line.lstrip().startswith("#") or (line == "---" and not values):
            continue
        try:
            if item := _ITEM.fullmatch(line):
                entries = values.get(key)
                if entries == "":
                    entries = values[key] = []
                if not isinstance(entries, list):
                    raise ValueError("a list item without a key above it")
                entries.append(_scalar(item[1]))
            elif match := _KEY.match(line):
                key = next(part for part in match.groups() if part is not None)
                if key in values:
                    raise ValueError(f"duplicate key {key}")
                values[key] = _value(line[match.end() :])
            else:
                raise ValueError("expected `key: value` or `- item`")
        except ValueError as error:
            raise Failure(f"{where}, line {number}: {error}; found: {line.strip()}") from None
    return values


def _value(text: str) -> Value:
    if not text.startswith("["):
        return _scalar(text)
    match = _FLOW.fullmatch(text)
    if match is None:
        raise ValueError("a list in [ ] must end in its line")
    return [_scalar(item.strip()) for item in _FLOW_ITEM.findall(match[1]) if item.strip()]


def _scalar(text: str) -> str:
    quoted = re.match(_QUOTED, text)
    rest = text[quoted.end() :] if quoted else text
    plain = re.split(r"(?:^|\s)#", rest, maxsplit=1)[0].strip()
    if quoted and not plain:
        return str(json.loads(quoted[0])) if quoted[0].startswith('"') else quoted[0][1:-1].replace("''", "'")
    if quoted or plain[:1] in tuple("\"'{}[]&*!|>%@`") or re.search(r":(\s|$)|^[-?](\s|$)", plain):
        raise ValueError("the stub reads only text, numbers, booleans and lists of them")
    return "" if plain in ("~", "null") else plain
