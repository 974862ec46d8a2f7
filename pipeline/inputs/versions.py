"""versions.yaml: what a release should contain, validated by versions.schema.json.

Every scalar is text (YAML would turn an unquoted 1.30 into a number); duplicate and unknown keys are errors. All errors
are reported at once, each with its line.
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

# The vendors' hosts; `upstream` in versions.yaml can replace them.
UPSTREAM = {
    "docker": "https://download.docker.com",
    "github": "https://github.com",
    "k3s-channels": "https://update.k3s.io",
    "kubernetes": "https://dl.k8s.io",
    "debian": "https://deb.debian.org/debian",
    "debian-security": "https://deb.debian.org/debian-security",
}
_GITHUB_API = "https://api.github.com"  # not for a copy of GitHub's files, which has no API

SCHEMA = Path(__file__).parents[2] / "versions.schema.json"

Keys = tuple[str | int, ...]  # path to a part of the document


@dataclass(frozen=True, kw_only=True)
class KnownFix:
    """A release without cooldown."""

    component: str
    version: str
    reason: str  # what it fixes


@dataclass(frozen=True, kw_only=True)
class Intent:
    """The content of versions.yaml."""

    names: tuple[ImageName, ...]  # repositories of the image; the first one is canonical
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
    mirrors: Mapping[str, tuple[str, ...]]  # a key of ORIGINS or `base` → base URLs, tried before the upstream
    # A vendor without checksums (docker) → base URLs of copies, which `resolve` compares.
    witnesses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cooldown: Mapping[str, int] = field(default_factory=dict)  # component or `default` → days
    known_fixes: tuple[KnownFix, ...] = ()
    variants: tuple[Variant, ...] = ()  # in addition to the image
    policy: Mapping[str, Grade] = field(default_factory=dict)  # component, `base`, `packages`, `default` → grade

    def days(self, component: str) -> int:
        """Return the minimum age, in days, of a release that a channel can choose."""
        return self.cooldown.get(component, self.cooldown.get(DEFAULT, 0))

    def fix(self, component: str, version: str) -> KnownFix | None:
        """Return the known fix of that version; None if there is none."""
        return next((one for one in self.known_fixes if (one.component, one.version) == (component, version)), None)

    @property
    def github_api(self) -> str | None:
        """Base URL of GitHub's API; None if `upstream` replaces GitHub and names no API."""
        ours = self.upstream.get("github") == UPSTREAM["github"]
        return self.upstream.get("github-api", _GITHUB_API if ours else None)

    @property
    def checksum(self) -> Digest:
        """The digest of everything that decides the lock, which states it; without names, mirrors, witnesses, policy.

        Without `variants`, too: a lock can have more files than requested.
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
        raise IntentError(f"{path} does not exist", next_step="run in a checkout, or use --versions PATH") from None
    except (OSError, UnicodeDecodeError) as error:
        raise IntentError(f"{path} cannot be read", found=str(error)) from None
    return parse(text, str(path))


def parse(text: str, where: str) -> Intent:
    """Parse a versions.yaml; `where`: its name in messages. Raises IntentError with every error and its line."""
    document = _Document(where)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        plain = document.read(root, ()) if root else None
    except RecursionError:
        raise IntentError(f"{where}: not valid: too many levels") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}:{mark.line + 1}" if mark else where
        raise IntentError(f"{line}: not YAML: {getattr(error, 'problem', error)}") from None
    document.check(plain)
    if plain is None or document.errors:
        errors = [text for _, text in sorted(document.errors)] or [f"{where}: empty"]
        raise IntentError("\n".join(dict.fromkeys(errors)), next_step="docs/versions.md describes each key")
    return _intent(plain)


def render(intent: Intent) -> str:
    """Return the text of a versions.yaml, the inverse of `parse`."""
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
    """Write a versions.yaml atomically."""
    write_text(path, render(intent))


class _Document:
    """The lines of a document's parts, and its errors."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._lines: dict[Keys, int] = {}
        self.errors: list[tuple[int, str]] = []  # line, message

    def read(self, node: yaml.Node, keys: Keys) -> Any:
        """Return a part as plain data; duplicate keys are errors."""
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
                self._add((*keys, name), f"{_name(keys)}: {name!r} is here twice")
            plain[name] = self.read(value, (*keys, name))
        return plain

    def check(self, plain: Any) -> None:
        """Validate by the schema, and check what a schema cannot express."""
        if plain is None:
            return
        for error in _validator().iter_errors(plain):
            keys = tuple(error.absolute_path)
            for key, text in _messages(error, _name(keys)):
                self._add((*keys, key) if key else keys, text)
        if not self.errors:
            for number, fix in enumerate(plain.get("known-fixes", ())):
                component, version = fix["component"], fix["version"]
                if not is_exact(component, version):
                    text = f"known fix of {component}: expected an exact version, found {version!r}"
                    self._add(("known-fixes", number, "version"), text)

    def _add(self, keys: Keys, text: str) -> None:
        line = self._lines[keys]
        self.errors.append((line, f"{self._where}:{line}: {text}"))


def _name(keys: Keys) -> str:
    """Return a part's name for messages: its innermost key."""
    return next((key for key in reversed(keys) if isinstance(key, str)), "versions.yaml")


def _messages(error: ValidationError, name: str) -> Iterator[tuple[str, str]]:
    """Yield key and message for each error of a part; an empty key: the part itself."""
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
            duplicates = [entry for number, entry in enumerate(instance) if entry in instance[:number]]
            yield "", f"{name}: {duplicates[0]!r} is here twice"
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
    """Return the schema with its formats; importing jsonschema takes time."""
    from jsonschema import Draft202012Validator, FormatChecker

    formats = FormatChecker(formats=())
    formats.checks("base-url", raises=ValueError)(_is_base_url)
    formats.checks("image-name", raises=ValueError)(functools.partial(_is_image, tagged=False))
    formats.checks("image-with-tag", raises=ValueError)(functools.partial(_is_image, tagged=True))
    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")), format_checker=formats)


def _is_base_url(text: object) -> bool:
    """Check host and port; the schema's pattern checks the rest. Raises ValueError."""
    try:
        parts = urlsplit(str(text))
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"expected an http or https URL, found {text!r}")
    return True


def _is_image(text: object, *, tagged: bool) -> bool:
    """Check an image's name, with a tag or without. Raises ValueError."""
    _, tag, digest = ImageName.parse(str(text))
    if tagged and (not tag or digest):
        raise ValueError("expected a name with a tag; the digest is in the lock")
    if not tagged and (tag or digest):
        raise ValueError("expected a name without a tag; tags are made from the versions")
    return True


def _intent(plain: Mapping[str, Any]) -> Intent:
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
    """Normalize a base URL; httpx treats one without a host as relative, so a folder gets a host (RFC 8089, 2)."""
    return text.rstrip("/").replace("file:///", "file://localhost/", 1)


def _base_urls(listed: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {origin: tuple(map(_base_url, urls)) for origin, urls in listed.items()}
