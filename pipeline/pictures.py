"""The pictures of the documentation: docs/pictures/*.dot, drawn by Graphviz, as SVG that reads well on any background.

Each source begins with `// title: …` and `// alt: …`, which become the picture's title and description. The drawing
carries the digest of its source, so that tests/repository/test_docs.py holds both together where there is no Graphviz.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from html import escape
from pathlib import Path

from pipeline.core import machine
from pipeline.core.errors import EngineError, IntentError
from pipeline.core.log import Log
from pipeline.core.records import write_text

FOLDER = "docs/pictures"
MARK = "source: sha256:"  # in a comment of the SVG, before the digest of the .dot file


def words(source: str, name: str) -> tuple[str, str]:
    """Title and description of a .dot file. Raises IntentError when it lacks one; `name` is for the message."""
    matches = [re.search(rf"^// {word}: (\S.*)$", source, re.MULTILINE) for word in ("title", "alt")]
    title, alt = (match[1] if match else "" for match in matches)
    if not title or not alt:
        raise IntentError(f"{name} does not say what it shows", expected="lines `// title: …` and `// alt: …` on top")
    return title, alt


def finished(svg: str, source: str, name: str) -> str:
    """What `dot -Tsvg` wrote, with title and description, without its tooltips, names and version. Pure.

    Graphviz gives the title of each node and edge as a tooltip: names that only the source knows.
    """
    title, alt = words(source, name)
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<!--.*?-->\n?|<title>.*?</title>\n?", "", body, flags=re.DOTALL)
    size = re.search(r'viewBox="([^"]+)"', body)
    assert size  # dot always writes one
    head = (
        f"<!-- {MARK}{hashlib.sha256(source.encode()).hexdigest()} -->\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size[1]}" role="img" aria-labelledby="title alt">\n'
        f'<title id="title">{escape(title)}</title>\n<desc id="alt">{escape(alt)}</desc>\n'
    )
    return head + body[body.index(">") + 1 :].lstrip()


def run(root: Path, log: Log) -> None:
    """Draw every source in `root`/docs/pictures.

    Raises IntentError, EngineError.
    """
    with log.step("pictures"):
        machine.ensure(["dot"], log)
        for source in sorted((root / FOLDER).glob("*.dot")):
            text = source.read_text(encoding="utf-8")
            command = [machine.find("dot") or "dot", "-Tsvg"]
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
            if done.returncode or done.stderr.strip():
                raise EngineError(
                    f"Graphviz does not draw {source.name}", found=done.stderr.strip()[-300:], where=str(source)
                )
            write_text(source.with_suffix(".svg"), finished(done.stdout, text, source.name))
            log.say(f"{source.relative_to(root)} drawn")
