"""The difference between two locks, as log lines and as Markdown for a pull request; deterministic, no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from urllib.parse import quote

from pipeline.components import COMPONENTS, DOCKER
from pipeline.core.errors import Incompatible
from pipeline.core.log import size
from pipeline.core.markdown import folded, table
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.inputs import compat
from pipeline.inputs.evidence import Grade
from pipeline.inputs.lock import Artifact, Lock, render

NOTHING = "Nothing changed: it is the same lock.\n"

# Component or embedded program → its repository on GitHub, and its tags; {} is the version without a leading v.
_TAGS = {
    **{one.name: (one.repository, "v{}") for one in COMPONENTS.values()},
    "docker": (DOCKER.repository, "docker-v{}"),  # since 29
    "buildkit": ("moby/buildkit", "v{}"),
    "compose-go": ("compose-spec/compose-go", "v{}"),
    "containerd": ("containerd/containerd", "v{}"),
    "cri-dockerd": ("k3s-io/cri-dockerd", "v{}"),
    "docker-init": ("krallin/tini", "v{}"),
    "runc": ("opencontainers/runc", "v{}"),
}
# Name in the log, title in Markdown, and the files of a lock that are not of a component.
_KINDS: tuple[tuple[str, str, Callable[[Lock], tuple[Artifact, ...]]], ...] = (
    ("system images", "k3s's system images, of the variant airgap", lambda lock: lock.airgap),
    ("package", "Debian packages of the image", lambda lock: lock.packages),
    ("guest", "Debian packages of the guest, no part of the image", lambda lock: lock.guest),
)
_RELEASED = r"v?\d+\.\d+\.\d+(-(rc|beta|alpha)\.?\d+|[-+]k3s\d+)?"  # versions with a tag, unlike a distribution's


def complete(lock: Lock, sizes: Mapping[Digest, int], embedded: Mapping[str, Mapping[str, str]], today: date) -> Lock:
    """Return a lock with sizes that upstream did not report, and with what is embedded.

    `today` becomes its date if the image changes.
    """

    def sized(files: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
        return tuple(replace(file, size=sizes[file.digest]) if file.size is None else file for file in files)

    made = replace(
        lock,
        artifacts=sized(lock.artifacts),
        airgap=sized(lock.airgap),
        packages=sized(lock.packages),
        guest=sized(lock.guest),
        embedded=embedded,
    )
    return made if made.digest == lock.digest else replace(made, date=today.isoformat())


def findings(lock: Lock) -> tuple[list[str], Incompatible | None]:
    """Check a lock by the rules of compat.py: return the findings, and the error if it is incompatible."""
    try:
        return [str(finding) for finding in compat.check(lock.versions, lock.embedded)], None
    except Incompatible as error:
        return [error.summary.replace("\n    ", "; ")], error


def lines(old: Lock | None, new: Lock) -> list[str]:
    """Return the changes as lines for the log; none if nothing changed."""
    if old is None:
        return [f"a new lock: {', '.join(f'{name} {version}' for name, version in new.versions.items())}"]
    result = _changed_versions(old, new)
    if old.base.digest != new.base.digest:
        result.append(f"base image: {old.base.digest.short}… → {new.base.digest.short}…")
    for kind, _, files in _KINDS:
        result += [
            f"{kind} {name} ({platform.architecture}): {before or 'none'} → {after or 'none'}"
            for name, platform, before, after in _differing(files(old), files(new))
        ]
    result += [f"{_named(file)}: another digest" for file, _ in _replaced(old, new)]
    # The evidence of other bytes is other evidence anyway.
    result += [
        f"{_named(file)}: {before.grade} → {file.grade}"
        for file, before in _regraded(old, new)
        if before.digest == file.digest
    ]
    if old.base.digest == new.base.digest and old.base.grade != new.base.grade:
        result.append(f"base image: {old.base.grade} → {new.base.grade}")
    known, seen = _observed(old), _observed(new)
    if added := len(seen.keys() - known.keys()):
        result.append(f"evidence: {added} new reasons")
    if dated := sum(day != known.get(reason, day) for reason, day in seen.items()):
        result.append(f"evidence: {dated} reasons with a new date")
    return result


def _changed_versions(old: Lock, new: Lock) -> list[str]:
    return [
        f"{name} {old.versions.get(name, 'none')} → {version}"
        for name, version in sorted(new.versions.items())
        if old.versions.get(name) != version
    ]


def _named(file: Artifact) -> str:
    return f"{file.component} {file.version} ({file.platform.architecture})"


def _observed(lock: Lock) -> dict[tuple[Grade, str], str | None]:
    """Return each reason with the day on which it was first observed."""
    reasons = [*lock.base.evidence, *(reason for file in lock.all_files for reason in file.evidence)]
    return {(reason.grade, reason.source): reason.observed for reason in reasons}


def markdown(old: Lock | None, new: Lock, findings: Sequence[str], weak: Sequence[str] = ()) -> str:
    """Return the changes as Markdown: components, embedded programs, base, packages, sizes, evidence, compatibility.

    `findings`: of compat.py; `weak`: `Lock.weak`.
    """
    if old is None:  # compare with an empty lock
        old = replace(new, versions={}, artifacts=(), airgap=(), packages=(), guest=(), embedded={})
    elif render(old) == render(new):
        return NOTHING
    parts = [
        _title(old, new),
        table(
            ["component", "old", "new", "upstream"],
            [_versions(name, old.versions, new.versions) for name in sorted(new.versions)],
        ),
        _embedded(old, new),
        _base(old, new),
        *(_packages(title, _differing(files(old), files(new))) for _, title, files in _KINDS),
        _sizes(old, new),
        _evidence(old, new),
        _section(
            "The same version, other bytes: find out why",
            ["file", "platform", "old", "new"],
            [
                [f"{file.component} {file.version}", file.platform.architecture, f"`{digest}`", f"`{file.digest}`"]
                for file, digest in _replaced(old, new)
            ],
        ),
        _list("Compatibility", findings),
        _list("Push will refuse this lock", weak),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _differing(
    older: Iterable[Artifact], newer: Iterable[Artifact]
) -> list[tuple[str, Platform, str | None, str | None]]:
    """Return name, platform, old and new version of added, removed (None) and changed packages."""
    before = {(file.component, file.platform): file.version for file in older}
    after = {(file.component, file.platform): file.version for file in newer}
    keys = sorted(before.keys() | after.keys())
    return [(*key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def _replaced(old: Lock, new: Lock) -> Iterator[tuple[Artifact, Digest]]:
    """Yield files of the same version with another digest, each with its old digest."""
    before = {(file.component, file.version, file.platform): file.digest for file in old.all_files}
    for file in new.all_files:
        digest = before.get((file.component, file.version, file.platform), file.digest)
        if digest != file.digest:
            yield file, digest


def _regraded(old: Lock, new: Lock) -> Iterator[tuple[Artifact, Artifact]]:
    """Yield files with another grade, each with its old entry."""
    before = {(file.component, file.platform): file for file in old.all_files}
    for file in new.all_files:
        known = before.get((file.component, file.platform), file)
        if known.grade != file.grade:
            yield file, known


def _title(old: Lock, new: Lock) -> str:
    if not old.versions:
        return "## A new lock"
    title = "## " + (", ".join(_changed_versions(old, new)) or "No component changed; what did is below")
    return title if old.intent == new.intent else f"{title}\n\nversions.yaml itself changed, too."


def _embedded(old: Lock, new: Lock) -> str:
    rows = []
    for component in sorted({*new.embedded, *old.embedded}):
        before, after = old.embedded.get(component, {}), new.embedded.get(component, {})
        rows += [
            [component, *_versions(name, before, after)]
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]
    return _section("What is in them", ["in", "what", "old", "new", "upstream"], rows)


def _versions(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return [name, before.get(name, "—"), after.get(name, "—"), _links(name, before.get(name), after.get(name))]


def _base(old: Lock, new: Lock) -> str:
    if old.versions and old.base == new.base:
        return ""
    before = f"`{old.base.image}@{old.base.digest}`" if old.versions else "—"
    return _section("Base image", ["old", "new"], [[before, f"`{new.base.image}@{new.base.digest}`"]])


def _packages(title: str, changes: Iterable[tuple[str, Platform, str | None, str | None]]) -> str:
    """Return the changed packages as a folded table; platforms with the same change share a row."""
    platforms: dict[tuple[str, str, str], list[str]] = {}
    for name, platform, old, new in changes:
        platforms.setdefault((name, old or "—", new or "—"), []).append(platform.architecture)
    if not platforms:
        return ""
    counts = {
        "added": sum(old == "—" for _, old, _ in platforms),
        "removed": sum(new == "—" for _, _, new in platforms),
        "changed": sum("—" not in (old, new) for _, old, new in platforms),
    }
    summary = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    rows = [[name, ", ".join(names), old, new] for (name, old, new), names in platforms.items()]
    return folded(f"{title}: {summary}", table(["package", "platforms", "old", "new"], rows))


def _sizes(old: Lock, new: Lock) -> str:
    rows = []
    for airgap in (False, True) if old.airgap or new.airgap else (False,):
        for platform in sorted({*new.platforms, *old.platforms}):
            before, after = _total(old, platform, airgap), _total(new, platform, airgap)
            row = [f"{platform} airgap" if airgap else platform.value, _size(before), _size(after)]
            if before is None or after is None:
                row.append("—")
            elif before[1] or after[1]:
                row.append("not known: not every file has its size in the lock")
            else:
                change = after[0] - before[0]
                row.append(f"{change:+,} B ({change / max(before[0], 1):+.2%})" if change else "none")
            rows.append(row)
    title = "Size of the files, as they are downloaded, without the base image"
    return _section(title, ["platform", "old", "new", "change"], rows)


def _total(lock: Lock, platform: Platform, airgap: bool) -> tuple[int, int] | None:
    """Return the bytes of the image's (or airgap's) files, and how many have no size; None without files."""
    files = [file for file in lock.airgap if file.platform == platform] if airgap else lock.files(platform)
    sizes = [file.size for file in files]
    return (sum(size or 0 for size in sizes), sizes.count(None)) if sizes else None


def _size(total: tuple[int, int] | None) -> str:
    if total is None:
        return "—"
    return f"{size(total[0])}" + (f" and {total[1]} files of unknown size" if total[1] else "")


def _evidence(old: Lock, new: Lock) -> str:
    rows = [
        [file.component, file.platform.architecture, before.grade.value, file.grade.value]
        for file, before in _regraded(old, new)
    ]
    if old.base.grade != new.base.grade:
        rows.append(["base image", "all", old.base.grade.value, new.base.grade.value])
    return _section("Evidence", ["file", "platform", "old", "new"], rows)


def _links(name: str, before: str | None, after: str | None) -> str:
    """Return links to the release and to the changes since the old version."""
    if name not in _TAGS or not after or not re.fullmatch(_RELEASED, after):
        return ""
    repository = f"k3s-io/{name}" if "-k3s" in after else _TAGS[name][0]  # k3s's own builds are tagged in its forks
    url = f"https://github.com/{repository}"
    links = [f"[release]({url}/releases/tag/{_tag(name, after)})"]
    if before and before != after and re.fullmatch(_RELEASED, before) and ("-k3s" in before) == ("-k3s" in after):
        links.append(f"[changes]({url}/compare/{_tag(name, before)}...{_tag(name, after)})")
    return ", ".join(links)


def _tag(name: str, version: str) -> str:
    plain = version.removeprefix("v")
    pattern = _TAGS[name][1]
    if name == "docker" and compat.number(plain) < (29, 0, 0):
        pattern = "v{}"
    return quote(pattern.format(plain))


def _list(title: str, entries: Sequence[str]) -> str:
    return "\n".join([f"### {title}", "", *(f"- {entry}" for entry in entries)]) if entries else ""


def _section(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"### {title}\n\n{table(columns, rows)}" if rows else ""
