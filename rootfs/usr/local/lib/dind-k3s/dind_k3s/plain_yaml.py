"""The part of YAML that k3s's own files are written in: nested mappings, lists of scalars, quotes, comments.

There is no YAML in the standard library. What is outside of that part (anchors, tags, block scalars, several documents)
is refused with its line, because a wrong guess would be worse. JSON is taken as it is. Scalars stay text.
"""

from __future__ import annotations

import json
import re
from typing import Any

from dind_k3s.plan import Mistake

Lines = list[tuple[int, str]]  # with their numbers

_QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^']|'')*'"""
_KEY = re.compile(rf"""({_QUOTED}|(?:[?-](?=\S)|[^\s"'#&*!|>%@`{{}}\[\],?-])[^"']*?)\s*:(?:\s+(.*))?""")
_LINE = re.compile(rf"""((?:{_QUOTED}|(?<=\S)\#|[^"'\#])*)(?:(?<!\S)\#.*)?""")  # and its comment
_FLOW = re.compile(rf"""\s*({_QUOTED}|[^,\[\]{{}}"']+)\s*(?:,|$)""")


def parse(text: str, where: str) -> Any:
    """What the text says: None, text, lists and dicts. Mistake with the line when it cannot be read."""
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise Mistake(f"{where} begins like JSON and is none: {error}") from None
    lines: Lines = []
    for number, raw in enumerate(text.splitlines(), start=1):
        found = _LINE.fullmatch(raw.rstrip())
        if found is None:
            raise Mistake(f"{where}, line {number}: quotes that do not match; put quotes around text with quotes in it")
        content = found[1].rstrip()
        if content.lstrip(" ").startswith("\t"):
            raise Mistake(f"{where}, line {number}: YAML takes no tabs as indentation")
        if content.strip() and not (content == "---" and not lines):
            lines.append((number, content))
    value, rest = _block(lines, where)
    if rest:
        raise Mistake(f"{where}, line {rest[0][0]}: this line's indentation fits to nothing above it")
    return value


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _block(lines: Lines, where: str) -> tuple[Any, Lines]:
    """The mapping or list that begins with the first line, and the lines behind it."""
    if not lines:
        return None, lines
    indent = _indent(lines[0][1])
    if re.match(r" *-(\s|$)", lines[0][1]):
        items: list[Any] = []
        while lines and _indent(lines[0][1]) == indent and (item := re.match(r" *-(?:\s+(.*))?$", lines[0][1])):
            items.append(_scalar(item[1] or "", f"{where}, line {lines[0][0]}"))
            lines = lines[1:]
        return items, lines
    values: dict[str, Any] = {}
    while lines and _indent(lines[0][1]) == indent:
        (number, line), lines = lines[0], lines[1:]
        place = f"{where}, line {number}"
        found = _KEY.fullmatch(line.strip())
        if found is None:
            raise Mistake(f"{place}: expected `key: value` or `- item`, found {line.strip()[:40]}")
        key = _scalar(found[1], place)
        if key in values:
            raise Mistake(f"{place}: {key} stands there twice")
        if found[2]:
            values[key] = _scalar(found[2], place)
        elif lines and (_indent(lines[0][1]) > indent or re.match(rf" {{{indent}}}-(\s|$)", lines[0][1])):
            values[key], lines = _block(lines, where)
        else:
            values[key] = None
    return values, lines


def _scalar(text: str, place: str) -> Any:
    text = text.strip()
    if text.startswith("["):
        return _list(text, place)
    if text[:1] in ("{", '"'):
        try:
            return json.loads(text)
        except ValueError:
            raise Mistake(f"{place}: what stands in braces or double quotes is read as JSON, and is none") from None
    if text[:1] == "'" and text[-1:] == "'" and len(text) > 1:
        return text[1:-1].replace("''", "'")
    if text[:1] in tuple("&*!|>%@`,]}") or re.match(r"[-?](\s|$)|[^\"']*:(\s|$)|.*[\"']", text):
        raise Mistake(f"{place}: only text, numbers, lists of them and mappings are read; put quotes around text")
    return None if text in ("", "~", "null") else text


def _list(text: str, place: str) -> list[Any]:
    if not text.endswith("]"):
        raise Mistake(f"{place}: a list in brackets has to end in its line")
    items, rest = [], text[1:-1].strip()
    while rest:
        found = _FLOW.match(rest)
        if found is None:
            raise Mistake(f"{place}: this list cannot be read")
        items.append(_scalar(found[1], place))
        rest = rest[found.end() :].strip()
    return items
