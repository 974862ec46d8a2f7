"""Configuration files that the user hands in: read whole, or refused with the place of the mistake."""

from __future__ import annotations

import codecs
import json
import os
import re
import subprocess
from collections.abc import Sequence
from typing import Any, NoReturn

from dind_k3s.plan import Mistake, shown
from dind_k3s.root import at

_LARGEST = 1 << 20  # bytes; what is longer was mounted there by accident

# As dockerd reads its file.
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def read_text(file: str) -> str | None:
    """The file's text; None when there is none. Raises Mistake for everything that is no text file."""
    path = at(file)
    try:
        if not path.exists():
            if path.is_symlink():
                raise Mistake(f"{file} is a link to {path.readlink()}, which is not there")
            return None
        if path.is_dir():
            raise Mistake(
                f"{file} is a folder, where a file is expected; docker makes one when the source of a bind mount is "
                "missing"
            )
        if not (path.is_file() or path.is_char_device()):  # /dev/null is a fine way to say «nothing»
            raise Mistake(f"{file} is not a file")
        with path.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
    except OSError as error:
        raise Mistake(f"{file} cannot be read: {error.strerror}") from None
    if len(data) > _LARGEST:
        raise Mistake(f"{file} has more than {_LARGEST} bytes; a configuration is expected")
    encoding = "utf-8"
    for mark, name in _MARKS:
        if data.startswith(mark):
            data, encoding = data.removeprefix(mark), name
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Mistake(f"{file} is not a text in UTF-8: line {line} has the byte 0x{data[error.start]:02x}") from None


def read_object(file: str) -> tuple[dict[str, Any], list[str]]:
    """A JSON object and the keys that are in it twice; nothing where there is no file. Raises Mistake."""
    text = read_text(file)
    if not (text or "").strip():
        return {}, []
    assert text is not None
    twice: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) < len(found):
            keys = [key for key, _ in found]
            twice.extend(key for key in made if keys.count(key) > 1)
        return made

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number in JSON")

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1].strip() if error.lineno <= len(text.splitlines()) else ""
        hint = "; JSON has no comments" if re.match(r"//|#|/\*", line) else ""
        raise Mistake(f"{file} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise Mistake(f"{file} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Mistake(f"{file} must hold a JSON object, it holds a {type(value).__name__}")
    return value, twice


def not_yaml(files: Sequence[str]) -> list[str]:
    """A message for each file that is not YAML, which k3s would die of again and again.

    kubectl reads YAML with the library that k3s has, too. One call of it, and none where nothing is set.
    """
    mistakes: list[str] = []
    worth = {}
    for file in files:
        try:
            text = read_text(file) or ""
        except Mistake as mistake:
            mistakes += mistake.messages
        else:
            if any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
                worth[str(at(file))] = file
    if not worth:
        return mistakes
    command = ["kubectl", "config", "view"]
    environment = {**os.environ, "KUBECONFIG": ":".join(worth)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return mistakes  # k3s reports them
    for report in done.stderr.split("error loading config file ")[1:]:
        path, _, reason = report.removeprefix('"').partition('": ')
        file = worth.get(path, path)
        if found := re.search(r"^yaml: (.*?)[,\]]*\s*$", reason, re.DOTALL):
            mistakes.append(f"{file} is not YAML: {shown(found[1], 200)}")
        elif found := re.search(r"cannot unmarshal (\w+) into Go value", reason):
            mistakes.append(f"{file} must hold lines of `key: value`, it holds one {found[1]}")
        # Whatever else kubectl misses in it: YAML it is.
    return mistakes
