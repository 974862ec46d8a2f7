"""The part of YAML that k3s configurations use: one mapping of scalars and lists of scalars.

Everything else (nested mappings, anchors, tags, block scalars, several documents) is refused with file and line, for a
stand-in that guessed would make a rehearsal lie. Scalars stay text: a YAML 1.30 or `no` means what its reader decides.
"""

from __future__ import annotations

import re

from .failure import Failure

Value = str | list[str]

_KEY = re.compile(r"""(?:"(?P<double>[^"\\]*)"|'(?P<single>[^']*)'|(?P<plain>[A-Za-z0-9][\w.+-]*))\s*:(?:\s+|$)""")
_ITEM = re.compile(r"(?P<indent> *)-(?:\s+|$)(?P<rest>.*)")
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\", "/": "/", "0": "\0", "r": "\r"}


def parse(text: str, where: str) -> dict[str, Value]:
    """Read a configuration; `where` is the name of the file in messages."""
    values: dict[str, Value] = {}
    open_list: list[str] | None = None  # the list whose "- item" lines may follow
    open_key = ""
    list_indent: int | None = None
    for number, raw in enumerate(text.splitlines(), start=1):
        place = f"{where}, line {number}"
        line = raw.rstrip()
        if not line.strip() or line.lstrip().startswith("#") or (line == "---" and not values):
            continue
        if "\t" in line[: len(line) - len(line.lstrip())]:
            raise Failure(f"{place}: YAML does not allow tabs as indentation")
        if item := _ITEM.fullmatch(line):
            indent = len(item["indent"])
            if open_list is None or list_indent not in (None, indent):
                raise Failure(f"{place}: a list item that belongs to no key above it: {line.strip()}")
            list_indent = indent
            open_list.append(_scalar(item["rest"], place))
            values[open_key] = open_list
            continue
        match = _KEY.match(line)
        if match is None:
            raise Failure(f"{place}: expected `key: value` or `- item` at the start of the line, found: {line.strip()}")
        key = next(part for part in match.groups() if part is not None)
        if key in values:
            raise Failure(f"{place}: the key {key} is there twice")
        rest = _uncommented(line[match.end() :], place)
        values[key] = _value(rest, place)
        open_list, open_key, list_indent = ([] if rest == "" else None), key, None
    return values


def _value(text: str, place: str) -> Value:
    if not text.startswith("["):
        return _scalar(text, place)
    if not text.endswith("]"):
        raise Failure(f"{place}: a list in [ ] must end in the same line")
    items: list[str] = []
    rest = text[1:-1].strip()
    while rest:
        match = re.match(r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^,\[\]{}]+?)\s*(?:,\s*|$)""", rest)
        if match is None:
            raise Failure(f"{place}: cannot read this list: {text}")
        items.append(_scalar(match[1], place))
        rest = rest[match.end() :]
    return items


def _uncommented(text: str, place: str) -> str:
    """Cut a comment off: `#` at the start or after white space, outside quotes."""
    text = text.strip()
    if text[:1] in ('"', "'"):
        match = re.match(r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*')\s*(?:#.*)?$""", text)
        if match is None:
            raise Failure(f"{place}: text after or within quotes that do not match: {text}")
        return match[1]
    if text.startswith("["):
        match = re.match(r"""(\[(?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^"'\]])*\])\s*(?:#.*)?$""", text)
        if match is None:
            raise Failure(f"{place}: a list in [ ] must end in the same line and have matching quotes: {text}")
        return match[1]
    return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip()


def _scalar(text: str, place: str) -> str:
    text = _uncommented(text, place)
    if text.startswith('"'):
        return re.sub(r"\\(.)", lambda found: _escaped(found[1], place), text[1:-1])
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    if text[:1] in tuple("{}[]&*!|>%@`") or re.search(r":(\s|$)", text) or re.match(r"[-?](\s|$)", text):
        raise Failure(f"{place}: the stand-in reads only text, numbers, booleans and lists of them, found: {text}")
    return "" if text in ("~", "null", "Null", "NULL") else text


def _escaped(letter: str, place: str) -> str:
    if letter not in _ESCAPES:
        raise Failure(f"{place}: the stand-in does not know the escape \\{letter}")
    return _ESCAPES[letter]
