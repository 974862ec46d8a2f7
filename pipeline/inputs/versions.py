"""versions.yaml: what people ask for, read by versions.schema.json.

Every scalar is text (YAML would turn an unquoted 1.30 into a number), equal keys and unknown keys are mistakes, and
all mistakes are reported at once, each with its line.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from pipeline.components import COMPONENTS, is_exact
from pipeline.core.errors import IntentError
from pipeline.core.names import Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant, write_text
from pipeline.inputs.evidence import DEFAULT, Grade

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

ORIGINS = ("docker", "github", "github-api", "k3s-channels", "kubernetes", "debian", "debian-security")

# The vendors' own hosts; `upstream` in versions.yaml replaces one of them.
UPSTREAM = {
    "docker": "https://download.docker.com",
    "github": "https://github.com",
    "k3s-channels": "https://update.k3s.io",
    "kubernetes": "https://dl.k8s.io",
    "debian": "https://deb.debian.org/debian",
    "debian-security": "https://deb.debian.org/debian-security",
}
_GITHUB_API = "https://api.github.com"  # only where `github` is GitHub itself; a copy of its files has no such API

SCHEMA = Path(__file__).parents[2] / "versions.schema.json"

Keys = tuple[str | int, ...]  # from the top of the document to one of its parts


@dataclass(frozen=True, kw_only=True)
class KnownFix:
    """A release that is wanted at once, however young it is."""

    component: str
    version: str
    reason: str  # for people: what it mends


@dataclass(frozen=True, kw_only=True)
class Intent:
    """One reading of versions.yaml."""

    names: tuple[ImageName, ...]  # where the image is published; the first one is the canonical one
    title: str
    description: str
    source: str  # URL of this project's repository
    licenses: str  # SPDX expression
    platforms: tuple[Platform, ...]
    components: Mapping[str, str]  # a key of COMPONENTS → exact version or channel (docs/versions.md)
    base: str  # image reference with a readable tag, e.g. docker.io/library/debian:trixie-slim
    suites: Mapping[str, tuple[str, ...]]  # Debian archive, a key of ORIGINS → its suites
    packages: tuple[str, ...]  # Debian package names, sorted
    upstream: Mapping[str, str]  # a key of ORIGINS → base URL without a trailing slash
    mirrors: Mapping[str, tuple[str, ...]]  # a key of ORIGINS, or `base` → base URLs tried before the upstream
    # A vendor without checksums (docker) → base URLs that `resolve` compares the upstream with.
    witnesses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cooldown: Mapping[str, int] = field(default_factory=dict)  # component or `default` → days; none: 0
    known_fixes: tuple[KnownFix, ...] = ()
    variants: tuple[Variant, ...] = ()  # what is made beside the image itself
    policy: Mapping[str, Grade] = field(default_factory=dict)  # component, `base`, `packages`, `default` → least grade

    def days(self, component: str) -> int:
        """How many days old a release must be before a channel may choose it."""
        return self.cooldown.get(component, self.cooldown.get(DEFAULT, 0))

    def fix(self, component: str, version: str) -> KnownFix | None:
        """The known fix that this release is, if it is one."""
        return next((one for one in self.known_fixes if (one.component, one.version) == (component, version)), None)

    @property
    def github_api(self) -> str | None:
        """Base URL of GitHub's API; None where another server stands in GitHub's place and no API was named."""
        ours = self.upstream.get("github") == UPSTREAM["github"]
        return self.upstream.get("github-api", _GITHUB_API if ours else None)

    @property
    def checksum(self) -> Digest:
        """Of everything that decides what a lock holds; the lock carries it. Names, mirrors, witnesses, policy: no.

        `variants` neither: a lock may hold more than is asked for, and `lock.read` looks for what is.
        """
        parts: dict[str, object] = {
            "platforms": list(self.platforms),
            "components": dict(self.components),
            "base": self.base,
            "suites": {archive: list(suites) for archive, suites in self.suites.items()},
            "packages": list(self.packages),
            "upstream": dict(self.upstream),
        }
        if self.cooldown or self.known_fixes:
            parts["cooldown"] = dict(self.cooldown)
            parts["known-fixes"] = [[fix.component, fix.version] for fix in self.known_fixes]
        return Digest.of(json.dumps(parts, sort_keys=True).encode())


def read(path: Path) -> Intent:
    """Read a versions.yaml file. Raises IntentError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise IntentError(f"{path} does not exist", next_step="run from a checkout, or name one: --versions") from None
    except (OSError, UnicodeDecodeError) as error:
        raise IntentError(f"{path} cannot be read", found=str(error)) from None
    return parse(text, str(path))


def parse(text: str, where: str) -> Intent:
    """Read the text of a versions.yaml; `where` names it in messages.

    Raises IntentError that lists every mistake with its line.
    """
    document = _Document(where)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        plain = document.read(root, ()) if root else None
    except RecursionError:
        raise IntentError(f"{where}: not YAML that a person writes: too many levels") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}:{mark.line + 1}" if mark else where
        raise IntentError(f"{line}: not YAML: {getattr(error, 'problem', error)}") from None
    document.check(plain)
    if plain is None or document.mistakes:
        mistakes = [text for _, text in sorted(document.mistakes)] or [f"{where}: empty"]
        raise IntentError("\n".join(dict.fromkeys(mistakes)), next_step="docs/versions.md tells what each key takes")
    return _intent(plain)


def render(intent: Intent) -> str:
    """An intent as the text of a versions.yaml, which `parse` reads back to the same."""
    document: dict[str, object] = {
        "schema": 1,
        "image": {
            "names": [str(name) for name in intent.names],
            "title": intent.title,
            "description": intent.description,
            "source": intent.source,
            "licenses": intent.licenses,
        },
        "platforms": [platform.value for platform in intent.platforms],
        "components": dict(intent.components),
        "base": intent.base,
        "packages": {
            "suites": {archive: list(suites) for archive, suites in intent.suites.items()},
            "install": list(intent.packages),
        },
        "upstream": dict(intent.upstream),
        "mirrors": {origin: list(bases) for origin, bases in intent.mirrors.items()},
    }
    optional: dict[str, object] = {
        "witnesses": {origin: list(bases) for origin, bases in intent.witnesses.items()},
        "cooldown": dict(intent.cooldown),
        "known-fixes": [vars(fix) for fix in intent.known_fixes],
        "variants": [variant.value for variant in intent.variants],
        "policy": {key: grade.value for key, grade in intent.policy.items()},
    }
    document |= {key: value for key, value in optional.items() if value}
    return yaml.safe_dump(document, sort_keys=False, width=120)


def write(path: Path, intent: Intent) -> None:
    """Write an intent as a versions.yaml, in one step."""
    write_text(path, render(intent))


class _Document:
    """The lines of a document's parts, and its mistakes."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._lines: dict[Keys, int] = {}
        self.mistakes: list[tuple[int, str]] = []  # line, message

    def read(self, node: yaml.Node, keys: Keys) -> Any:
        """Return a part as plain data; equal keys are mistakes."""
        self._lines.setdefault(keys, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(entry, (*keys, number)) for number, entry in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return str(node.value).strip()
        plain: dict[str, Any] = {}
        for key, value in node.value:
            name = str(key.value)
            self._lines[*keys, name] = key.start_mark.line + 1
            if name in plain:
                self._wrong((*keys, name), f"{_name(keys)}: {name!r} stands here twice")
            plain[name] = self.read(value, (*keys, name))
        return plain

    def check(self, plain: Any) -> None:
        """Add what the schema finds wrong, and what a schema cannot say."""
        if plain is None:
            return
        for error in _validator().iter_errors(plain):
            keys = tuple(error.absolute_path)
            for key, text in _messages(error, _name(keys)):
                self._wrong((*keys, key) if key else keys, text)
        if not self.mistakes:
            for number, fix in enumerate(plain.get("known-fixes", ())):
                component, version = fix["component"], fix["version"]
                if not is_exact(component, version):
                    text = f"known fix of {component}: expected an exact version, found {version!r}"
                    self._wrong(("known-fixes", number, "version"), text)

    def _wrong(self, keys: Keys, text: str) -> None:
        line = self._lines[keys]
        self.mistakes.append((line, f"{self._where}:{line}: {text}"))


def _name(keys: Keys) -> str:
    """What a part is called in messages: its innermost key."""
    return next((key for key in reversed(keys) if isinstance(key, str)), "versions.yaml")


def _messages(error: ValidationError, name: str) -> Iterator[tuple[str, str]]:
    """Yield key and message of the mistakes in a part; an empty key: the part itself."""
    schema: Any = error.schema
    instance: Any = error.instance
    known = schema.get("properties", {})
    match error.validator:
        case "additionalProperties":
            for key in instance.keys() - known.keys():
                near = difflib.get_close_matches(key, known, 1)
                yield key, f"{name}: unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else "")
        case "required":
            for key in schema["required"]:
                if key not in instance:
                    yield "", f"{name}: {key!r} is missing"
        case "uniqueItems":
            twice = [entry for number, entry in enumerate(instance) if entry in instance[:number]]
            yield "", f"{name}: {twice[0]!r} stands here twice"
        case "format":
            yield "", f"{name}: {error.cause}"
        case _:
            expected = schema.get("title") or {
                "enum": f"one of {', '.join(map(str, schema.get('enum', ())))}",
                "array": "a list with at least one entry",
                "object": "keys and values",
            }.get(str(schema.get("type", "enum")), "some text")
            found = repr(instance) if isinstance(instance, str) else "a list or keys and values"
            yield "", f"{name}: expected {expected}, found {found}"


@functools.cache
def _validator() -> Validator:
    """The schema with the formats that it names; importing jsonschema takes a while."""
    from jsonschema import Draft202012Validator, FormatChecker

    formats = FormatChecker(formats=())
    formats.checks("base-url", raises=ValueError)(_is_base_url)
    formats.checks("image-name", raises=ValueError)(functools.partial(_is_image, tagged=False))
    formats.checks("image-with-tag", raises=ValueError)(functools.partial(_is_image, tagged=True))
    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")), format_checker=formats)


def _is_base_url(text: object) -> bool:
    """Whether host and port can be; raises ValueError. The rest is the schema's pattern."""
    try:
        parts = urlsplit(str(text))
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"expected an http or https URL, found {text!r}")
    return True


def _is_image(text: object, *, tagged: bool) -> bool:
    """Whether it is an image's name, with a tag or without; raises ValueError."""
    _, tag, digest = ImageName.parse(str(text))
    if tagged and (not tag or digest):
        raise ValueError("expected a name with a tag; its digest is the lock's matter")
    if not tagged and (tag or digest):
        raise ValueError("expected a name without a tag; tags come from the versions")
    return True


def _intent(plain: Mapping[str, Any]) -> Intent:
    """The intent of a document without mistakes."""
    image, packages, cooldown = plain["image"], plain["packages"], plain.get("cooldown", {})
    days = cooldown if isinstance(cooldown, dict) else {DEFAULT: cooldown}
    return Intent(
        names=tuple(ImageName.parse(name)[0] for name in image["names"]),
        title=image["title"],
        description=image["description"],
        source=_base_url(image["source"]),
        licenses=image["licenses"],
        platforms=tuple(sorted(map(Platform, plain["platforms"]))),
        components={name: plain["components"][name] for name in COMPONENTS},
        base=plain["base"],
        suites={archive: tuple(suites) for archive, suites in packages["suites"].items()},
        packages=tuple(sorted(packages["install"])),
        upstream={**UPSTREAM, **{origin: _base_url(url) for origin, url in plain.get("upstream", {}).items()}},
        mirrors=_base_urls(plain.get("mirrors", {})),
        witnesses=_base_urls(plain.get("witnesses", {})),
        cooldown={key: int(text) for key, text in days.items()},
        known_fixes=tuple(KnownFix(**fix) for fix in plain.get("known-fixes", ())),
        variants=tuple(map(Variant, plain.get("variants", ()))),
        policy={key: Grade(text) for key, text in plain.get("policy", {}).items()},
    )


def _base_url(text: str) -> str:
    """A base URL; httpx takes one without a host for a relative one, so a folder gets its long form (RFC 8089, 2)."""
    return text.rstrip("/").replace("file:///", "file://localhost/", 1)


def _base_urls(listed: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {origin: tuple(map(_base_url, urls)) for origin, urls in listed.items()}
