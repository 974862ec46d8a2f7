"""versions.yaml: what people ask for, read strictly.

Every scalar is text (YAML would turn an unquoted 1.30 into a number), equal keys and unknown keys are mistakes, and
all mistakes are told at once, each with its line.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from pipeline.components import COMPONENTS
from pipeline.core.errors import IntentError
from pipeline.core.names import Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant, write_text
from pipeline.inputs.evidence import DEFAULT, Grade

ORIGINS = ("docker", "github", "github-api", "k3s-channels", "kubernetes", "debian", "debian-security")
# What may have mirrors: the origins, and the base image (an OCI layout behind a plain file server).
MIRRORED = (*ORIGINS, "base")
WITNESSED = ("docker",)  # whose vendor publishes no checksum, so that only a second copy can speak for the first

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

_PACKAGE = r"[a-z0-9][a-z0-9+.-]+"  # deb-control(5), Package


_DAYS = r"[0-9]{1,3}"
_BASE_URL = r"https?://[^@?#\s]+"  # a query or a fragment is no part of a base URL; a query may hold a token


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
    mirrors: Mapping[str, tuple[str, ...]]  # a key of MIRRORED → base URLs tried before the upstream, in order
    # A key of WITNESSED → base URLs that `resolve` compares the upstream with and nothing else is fetched from.
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
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise IntentError(f"{where}: not YAML that a person writes: too many levels") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}:{mark.line + 1}" if mark else where
        raise IntentError(f"{line}: not YAML: {getattr(error, 'problem', error)}") from None
    reader = _Reader(where)
    intent = reader.intent(root)
    if reader.mistakes or intent is None:
        first, *rest = reader.mistakes or [f"{where}: empty"]
        raise IntentError("\n".join([first, *rest]), next_step="docs/versions.md tells what each key takes")
    return intent


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
    if intent.witnesses:
        document["witnesses"] = {origin: list(bases) for origin, bases in intent.witnesses.items()}
    if intent.cooldown:
        document["cooldown"] = dict(intent.cooldown)
    if intent.known_fixes:
        document["known-fixes"] = [vars(fix) for fix in intent.known_fixes]
    if intent.variants:
        document["variants"] = [variant.value for variant in intent.variants]
    if intent.policy:
        document["policy"] = {key: grade.value for key, grade in intent.policy.items()}
    return yaml.safe_dump(document, sort_keys=False, width=120)


def write(path: Path, intent: Intent) -> None:
    """Write an intent as a versions.yaml, in one step."""
    write_text(path, render(intent))


class _Reader:
    """Walks the nodes and collects mistakes instead of stopping at the first."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.mistakes: list[str] = []

    def wrong(self, node: yaml.Node, text: str) -> None:
        self.mistakes.append(f"{self.where}:{node.start_mark.line + 1}: {text}")

    def mapping(
        self, node: yaml.Node | None, what: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> dict[str, yaml.Node]:
        """A mapping's nodes by key; unknown, repeated and missing keys are mistakes."""
        if not isinstance(node, yaml.MappingNode):
            if node is not None:
                self.wrong(node, f"{what}: expected keys and values")
            return {}
        found: dict[str, yaml.Node] = {}
        known = (*required, *optional)
        for key, value in node.value:
            name = str(key.value)
            if name in found:
                self.wrong(key, f"{what}: {name!r} stands here twice")
            elif name not in known:
                near = difflib.get_close_matches(name, known, 1)
                self.wrong(key, f"{what}: unknown key {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
            found[name] = value
        for name in required:
            if name not in found:
                self.wrong(node, f"{what}: {name!r} is missing")
        return found

    def text(self, node: yaml.Node | None, what: str, pattern: str = r".+", expected: str = "some text") -> str:
        """A scalar as it is written."""
        if node is None:
            return ""
        if not isinstance(node, yaml.ScalarNode) or not re.fullmatch(pattern, node.value.strip(), re.ASCII):
            found = repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or keys and values"
            self.wrong(node, f"{what}: expected {expected}, found {found}")
            return ""
        return str(node.value).strip()

    def items(self, node: yaml.Node | None, what: str, read: Callable[[yaml.Node, str], str]) -> tuple[str, ...]:
        """A list without repetition."""
        if node is None:
            return ()
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.wrong(node, f"{what}: expected a list with at least one entry")
            return ()
        found: list[str] = []
        for entry in node.value:
            value = read(entry, what)
            if value and value in found:
                self.wrong(entry, f"{what}: {value!r} stands here twice")
            found.append(value)
        return tuple(value for value in found if value)

    def mirror(self, node: yaml.Node, what: str) -> str:
        """A base URL, or a folder: httpx takes a URL without a host for a relative one, so it gets its long form."""
        if isinstance(node, yaml.ScalarNode) and node.value.strip().startswith("file:"):
            text = self.text(node, what, r"file://(localhost)?/\S+", "file:///… with an absolute path").rstrip("/")
            return text.replace("file:///", "file://localhost/", 1)  # RFC 8089, 2
        return self.url(node, what)

    def url(self, node: yaml.Node, what: str) -> str:
        expected = "an http or https URL without credentials and query; credentials are the client's matter (netrc)"
        text = self.text(node, what, _BASE_URL, expected).rstrip("/")
        try:
            parts = urlsplit(text)
            good = not text or bool(parts.hostname and (parts.port is None or parts.port > 0))
        except ValueError:
            good = False
        if not good:
            self.wrong(node, f"{what}: expected {expected}, found {text!r}")
        return text

    def days(self, node: yaml.Node | None) -> dict[str, int]:
        """`cooldown`: one number of days for all, or numbers by component."""
        if node is None:
            return {}
        one = isinstance(node, yaml.ScalarNode)
        entries = {DEFAULT: node} if one else self.mapping(node, "cooldown", (), (DEFAULT, *COMPONENTS))
        texts = {key: self.text(entry, f"cooldown of {key}", _DAYS, "days, 0 to 999") for key, entry in entries.items()}
        return {key: int(text) for key, text in texts.items() if text}

    def fixes(self, node: yaml.Node | None) -> tuple[KnownFix, ...]:
        """`known-fixes`: a list of component, version and reason."""
        if node is None:
            return ()
        if not isinstance(node, yaml.SequenceNode):
            self.wrong(node, "known-fixes: expected a list of component, version and reason")
            return ()
        found = []
        for entry in node.value:
            keys = self.mapping(entry, "known-fixes", ("component", "version", "reason"))
            component = self.text(keys.get("component"), "component", "|".join(COMPONENTS), "a component")
            fitting = COMPONENTS[component].exact if component in COMPONENTS else ".+"
            version = self.text(keys.get("version"), f"known fix of {component}", fitting, "an exact version")
            reason = self.text(keys.get("reason"), "reason", r"\S[^\n]*", "one line that says what it mends")
            found.append(KnownFix(component=component, version=version, reason=reason))
        return tuple(found)

    def grades(self, node: yaml.Node | None) -> dict[str, Grade]:
        """`policy`: the least grade by component."""
        entries = self.mapping(node, "policy", (), (DEFAULT, *COMPONENTS, "base", "packages"))
        texts = {
            key: self.text(entry, f"policy of {key}", "|".join(Grade), f"one of {', '.join(Grade)}")
            for key, entry in entries.items()
        }
        return {key: Grade(text) for key, text in texts.items() if text}

    def image(self, node: yaml.Node, what: str) -> str:
        text = self.text(node, what)
        try:
            _, tag, digest = ImageName.parse(text)
        except ValueError as error:
            self.wrong(node, f"{what}: {error}")
            return ""
        if what == "base" and (not tag or digest):
            self.wrong(node, "base: expected a name with a tag; its digest is the lock's matter")
        if what != "base" and (tag or digest):
            self.wrong(node, f"{what}: expected a name without a tag; tags come from the versions")
        return text

    def intent(self, root: yaml.Node | None) -> Intent | None:
        if root is None:
            return None
        top = self.mapping(
            root,
            "versions.yaml",
            ("schema", "image", "platforms", "components", "base", "packages"),
            ("upstream", "mirrors", "witnesses", "cooldown", "known-fixes", "policy", "variants"),
        )
        self.text(top.get("schema"), "schema", "1", "1, the only format there is")
        image = self.mapping(top.get("image"), "image", ("names", "title", "description", "source", "licenses"))
        names = self.items(image.get("names"), "image names", self.image)
        platforms = self.items(
            top.get("platforms"),
            "platforms",
            lambda node, what: self.text(node, what, "|".join(Platform), f"one of {', '.join(Platform)}"),
        )
        variants = self.items(
            top.get("variants"),
            "variants",
            lambda node, what: self.text(node, what, Variant.AIRGAP, f"{Variant.AIRGAP}, the only one there is"),
        )
        asked = self.mapping(top.get("components"), "components", tuple(COMPONENTS))
        components = {
            name: self.text(
                asked.get(name), name, COMPONENTS[name].asked, "an exact version or a channel (docs/versions.md)"
            )
            for name in COMPONENTS
        }
        base = self.image(top["base"], "base") if "base" in top else ""
        packages = self.mapping(top.get("packages"), "packages", ("suites", "install"))
        archives = self.mapping(packages.get("suites"), "suites", ("debian",), ("debian-security",))
        suites = {
            archive: self.items(node, archive, lambda node, what: self.text(node, what, r"[a-z][a-z-]*", "a suite"))
            for archive, node in archives.items()
        }
        install = self.items(
            packages.get("install"),
            "install",
            lambda node, what: self.text(node, what, _PACKAGE, "the name of a Debian package"),
        )
        bases = self.mapping(top.get("upstream"), "upstream", (), ORIGINS)
        upstream = {**UPSTREAM, **{origin: self.url(node, origin) for origin, node in bases.items()}}
        listed = self.mapping(top.get("mirrors"), "mirrors", (), MIRRORED)
        mirrors = {origin: self.items(node, origin, self.mirror) for origin, node in listed.items()}
        others = self.mapping(top.get("witnesses"), "witnesses", (), WITNESSED)
        witnesses = {origin: self.items(node, origin, self.url) for origin, node in others.items()}
        cooldown, fixes = self.days(top.get("cooldown")), self.fixes(top.get("known-fixes"))
        policy = self.grades(top.get("policy"))
        if self.mistakes:
            return None
        texts = {key: self.text(image[key], key) for key in ("title", "description", "licenses")}
        source = self.url(image["source"], "source")
        if self.mistakes:
            return None
        return Intent(
            names=tuple(ImageName.parse(name)[0] for name in names),
            **texts,
            source=source,
            platforms=tuple(sorted(Platform(name) for name in platforms)),
            components=components,
            base=base,
            suites=suites,
            packages=tuple(sorted(install)),
            upstream=upstream,
            mirrors=mirrors,
            witnesses=witnesses,
            cooldown=cooldown,
            known_fixes=fixes,
            variants=tuple(Variant(name) for name in variants),
            policy=policy,
        )
