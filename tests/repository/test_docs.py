"""The documentation is held to the code: links, sessions, variables, quoted sentences, pictures, both READMEs."""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.helpers.shell_files import shell_files

ROOT = Path(__file__).resolve().parents[2]
ROOTFS = ROOT / "rootfs"
PICTURES = ROOT / "docs/pictures"
README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
IMAGE = ROOT / "docs/image.md"
# Pages whose words in italics are quotations of what a program of ours prints.
QUOTING = (ROOT / "docs/troubleshooting.md", ROOT / "docs/maintaining.md")
GAP = "…"


def tracked(suffix: str) -> list[Path]:
    """Every tracked or new file that ends so."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", f"*{suffix}"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return sorted(ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file())


PAGES = tracked(".md")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its code: blocks behind fences, indented blocks, code in a line."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"(?<=\n\n)(?: {4}.*\n)+", "", text)
    return re.sub(r"`[^`\n]*`", "``", text)


# Links


def anchors(page: Path) -> set[str]:
    """What GitHub lets one link to: each heading in small letters, without punctuation, with dashes for spaces."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: dict[str, int] = {}
    made = set()
    for heading in re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        made.add(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return made


def links(page: Path) -> list[str]:
    """Targets that are no URL."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if not re.match(r"[a-z][a-z0-9+.-]*:", target)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no {path}"
        assert ROOT in (target, *target.parents), f"{link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: that page has only {sorted(anchors(target))}"


def test_the_index_has_every_page() -> None:
    index = ROOT / "docs/README.md"
    there = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    assert {page for page in PAGES if page.parent == index.parent} - {index} <= there
    assert len(links(index)) == len(set(links(index)))


def test_anchors_are_made_as_github_makes_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `code` and «more»: [x](y)!\n\n## Two\n\n```sh\n# no heading\n```\n\n## Two\n", encoding="utf-8"
    )
    assert anchors(page) == {"a-code-and-more-x", "two", "two-1"}


# Sessions


def sessions() -> set[str]:
    """The functions of the noxfile that are sessions."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {one.name for one in functions if any("nox.session" in ast.unparse(by) for by in one.decorator_list)}


def named(text: str) -> set[str]:
    """Sessions that a text names."""
    return set(re.findall(r"\bnox -s ([a-z][\w-]*)", text))


def test_the_readme_names_every_session() -> None:
    assert len(sessions()) > 15
    assert named(README.read_text(encoding="utf-8")) >= sessions()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_session_that_a_page_names_is_there(page: Path) -> None:
    assert named(page.read_text(encoding="utf-8")) <= sessions()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_docker_takes_the_names_of_containers(page: Path) -> None:
    """It takes none of a single letter (moby/moby daemon/names/names.go)."""
    names = re.findall(r"--name[ =](\S+)", page.read_text(encoding="utf-8"))
    assert [one for one in names if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", one)] == []


# Variables and packages of the image

# Read in rootfs/, and nobody's to set from outside.
INTERNAL = {
    "DIND_K3S_TEST_ROOT",  # the tests' own
    *("DIND_K3S_START_DNS", "DIND_K3S_START_K3S"),  # keeper.py sets them for supervisord.conf
    *("DOCKER_OURS", "K3S_OURS"),  # names of the shell functions
}
# On the page, and read by others than rootfs/: by k3s itself, by clients elsewhere.
OF_OTHERS = {"K3S_DATASTORE_ENDPOINT", "DOCKER_TMPDIR"}
VARIABLE = r"\b(?:DIND_K3S|K3S|DOCKER)_[A-Z0-9_]+"


def read_by_the_image() -> set[str]:
    """Variables by name: a text in Python, an expansion in shell or in supervisor's configuration."""
    found: set[str] = set()
    for path in ROOTFS.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.suffix == ".pyc":
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            found |= {
                node.value
                for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(VARIABLE, node.value)
            }
        else:
            found |= set(re.findall(rf"\$\{{?({VARIABLE})", text))
            found |= set(re.findall(rf"%\(ENV_({VARIABLE})\)s", text))
    return found


def test_the_page_has_every_variable_that_the_image_reads_and_no_other() -> None:
    read = read_by_the_image() - INTERNAL
    assert {"DOCKER_ARGS", "K3S_URL", "DIND_K3S_STOP", "K3S_RENEW_HOURS", "DOCKER_TLS_SAN"} <= read
    documented = set(re.findall(VARIABLE, IMAGE.read_text(encoding="utf-8")))
    assert read - documented == set()
    assert documented - read - OF_OTHERS == set()


def test_what_is_internal_is_there_at_all() -> None:
    """Or this file would go on excusing what is gone."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in [*shell_files(), *ROOTFS.rglob("*.py")])
    assert [one for one in INTERNAL if one not in text] == []


def test_the_page_has_every_package_that_is_asked_for() -> None:
    asked = yaml.safe_load((ROOT / "versions.yaml").read_text(encoding="utf-8"))["packages"]["install"]
    table = IMAGE.read_text(encoding="utf-8").partition("## Debian packages")[2]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| ")]
    assert set(asked) == {word.strip() for cell in cells[1:] for word in cell.split(",")}


# Quoted sentences


def quotations(page: Path) -> list[str]:
    """What stands in italics, on one line each."""
    found = re.findall(r"(?<![\w*])\*(?!\*)([^*|]+?)\*(?![\w*])", prose(page))
    return [" ".join(one.split()) for one in found]


def texts_of_python(source: str) -> Iterator[str]:
    """Its texts but for docstrings, each f-string as one, with a gap for each value."""
    tree = ast.parse(source)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(one.value) if isinstance(one, ast.Constant) else GAP for one in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside | docstrings:
            yield node.value


def text_of_shell(source: str) -> str:
    """It without comment lines, with a gap for each expansion."""
    text = re.sub(r"^\s*#.*$", "", source, flags=re.MULTILINE)
    text = re.sub(r"\$\(\(.*?\)\)", GAP, text)
    before = ""
    while before != text:  # from the innermost outwards
        before, text = text, re.sub(r"\$\{[^{}]*\}|\$\([^()]*\)|\$\w+|\$[@#*]", GAP, text)
    return text


@cache
def printable() -> str:
    """Everything that the image's programs, the pipeline and the Dockerfile can print."""
    python = [*ROOTFS.rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")]
    shell = [path for path in shell_files() if ROOTFS in path.parents]
    parts = [text for path in python for text in texts_of_python(path.read_text(encoding="utf-8"))]
    parts += [text_of_shell(path.read_text(encoding="utf-8")) for path in (*shell, ROOT / "Dockerfile")]
    return "\n".join(" ".join(part.split()) for part in parts)


@pytest.mark.parametrize(("page", "sentence"), [(page, one) for page in QUOTING for one in quotations(page)])
def test_a_quoted_sentence_is_one_that_is_printed(page: Path, sentence: str) -> None:
    if sentence == "italics":  # the page's own words about itself
        return
    assert len(sentence.replace(GAP, "").split()) >= 2 or sentence == f"error: {GAP}", "too short to be found again"
    assert sentence in printable(), f"{name(page)} quotes what nothing prints: {sentence}"


def test_there_is_much_to_quote_and_what_is_made_up_is_found_out() -> None:
    assert len(quotations(QUOTING[0])) > 50
    assert f"the volume at {GAP} is in use by another container" in printable()
    assert "the volume is in use by another container" not in printable()
    assert "What single variables may hold, and" not in printable(), "a docstring is not printed"


# Pictures


def drawn(path: Path) -> ElementTree.Element:
    return ElementTree.fromstring(path.read_text(encoding="utf-8"))


def labels(source: str) -> set[str]:
    """Each line of each label."""
    return {line for label in re.findall(r'\blabel="([^"]*)"', source) for line in re.split(r"\\[nlr]", label) if line}


SOURCES = sorted(PICTURES.glob("*.dot"))
SPACE = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_a_drawing_is_the_one_of_its_source(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    svg = source.with_suffix(".svg")
    digest = hashlib.sha256(text.encode()).hexdigest()
    drawing = drawn(svg)
    assert f"sha256-{digest}" in (drawing[0].get("class") or "").split(), "nox -s pictures"
    written = {"".join(one.itertext()) for one in drawing.iter(f"{SPACE}text")}
    assert labels(text) == written


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_a_drawing_can_be_read_by_everybody(source: Path) -> None:
    """With a title of several words, its own background and letters that every system has; pages have words for it."""
    root = drawn(source.with_suffix(".svg"))
    title = root[0].findtext(f"{SPACE}title") or ""
    assert f'digraph "{title}"' in source.read_text(encoding="utf-8")
    assert " " in title
    assert root.get("viewBox")
    background = next(root.iter(f"{SPACE}polygon"))
    assert background.get("fill") == "white"
    fonts = {one.get("font-family") for one in root.iter(f"{SPACE}text")}
    assert fonts == {"sans-serif"}


def test_every_picture_is_on_a_page_with_words_for_it() -> None:
    shown = [
        ((page.parent / target).resolve(), words)
        for page in PAGES
        for words, target in re.findall(r"!\[([^]]*)\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert {source.with_suffix(".svg") for source in SOURCES} <= {path for path, _ in shown}
    assert [path for path, words in shown if len(words) < 10] == []
    assert len(SOURCES) >= 3
    assert {path.stem for path in PICTURES.glob("*.svg")} == {path.stem for path in SOURCES}


# Two languages


def blocks(page: Path) -> list[str]:
    """Command blocks, indented or behind fences, in order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(?:.|\n)*?^```$|(?<=\n\n)(?: {4}.*\n)+", text, re.MULTILINE)


def first_cells(page: Path) -> list[list[str]]:
    """What stands in code in the first column of each row, in order."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [re.findall(r"`[^`]+`", row.split("|")[1]) for row in rows]


def test_both_readmes_have_the_same_commands_tables_and_links() -> None:
    assert len(blocks(README)) >= 3
    assert blocks(README) == blocks(CHINESE)
    assert first_cells(README) == first_cells(CHINESE)
    own = {README.name, CHINESE.name}
    assert set(links(README)) - own == set(links(CHINESE)) - own
    headings = [re.findall(r"^#+(?= )", page.read_text(encoding="utf-8"), re.MULTILINE) for page in (README, CHINESE)]
    assert headings[0] == headings[1]


def test_each_leads_to_the_other_at_once() -> None:
    for page, other in ((README, CHINESE), (CHINESE, README)):
        assert f"]({other.name})" in "\n".join(page.read_text(encoding="utf-8").splitlines()[:4])
