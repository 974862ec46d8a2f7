"""What a new lock changes, as Markdown for the pull request that brings it. Two locks in, text out; no I/O.

The same two locks give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from urllib.parse import quote

from pipeline.components import COMPONENTS, DOCKER
from pipeline.core.errors import Incompatible
from pipeline.core.log import size
from pipeline.core.markdown import folded, table
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.inputs import compat
from pipeline.inputs.lock import Artifact, Base, Lock, render

NOTHING = "Nothing changed: it is the same lock.\n"

# Component or embedded program → its repository on GitHub and how it tags a version (`{}` with a leading v taken away).
_TAGS = {
    **{one.name: (one.repository, "v{}") for one in COMPONENTS.values()},
    "docker": (DOCKER.repository, "docker-v{}"),  # the tags' form from 29 on
    "buildkit": ("moby/buildkit", "v{}"),
    "compose-go": ("compose-spec/compose-go", "v{}"),
    "containerd": ("containerd/containerd", "v{}"),
    "cri-dockerd": ("k3s-io/cri-dockerd", "v{}"),
    "docker-init": ("krallin/tini", "v{}"),
    "runc": ("opencontainers/runc", "v{}"),
}
_RELEASED = r"v?\d+\.\d+\.\d+(-(rc|beta|alpha)\.?\d+|[-+]k3s\d+)?"  # what a tag exists for; no distribution's version


def complete(lock: Lock, sizes: Mapping[Digest, int], embedded: Mapping[str, Mapping[str, str]], today: date) -> Lock:
    """A lock with what the bytes tell: sizes that upstream did not, and what is embedded.

    `today` becomes its date when that changes what the image is made of.
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
    """What the rules of compat.py say of a lock: sentences, and the refusal if there is one."""
    try:
        return [str(found) for found in compat.check(lock.versions, lock.embedded)], None
    except Incompatible as refused:
        return [refused.summary.replace("\n    ", "; ")], refused


def markdown(old: Lock | None, new: Lock, said: Sequence[str], weak: Sequence[str] = ()) -> str:
    """What changed, for people: components, what is in them, base, packages, sizes, evidence; and what compat said.

    `weak`: what the policy does not believe, `Lock.weak`.
    """
    if old is not None and render(old) == render(new):
        return NOTHING
    parts = [
        _title(old, new),
        _components(old, new),
        _embedded(old, new),
        _base(old, new),
        _packages("k3s's system images, of the variant airgap", old.airgap if old else (), new.airgap),
        _packages("Debian packages of the image", old.packages if old else (), new.packages),
        _packages("Debian packages of the guest, no part of the image", old.guest if old else (), new.guest),
        _sizes(old, new),
        _evidence(old, new),
        _replaced(old, new),
        _sentences("Compatibility", said),
        _sentences("Push will refuse this lock", weak),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(old: Lock | None, new: Lock) -> str:
    if old is None:
        return "## A new lock"
    changed = [
        f"{name} {old.versions.get(name, 'none')} → {version}"
        for name, version in sorted(new.versions.items())
        if old.versions.get(name) != version
    ]
    title = "## " + (", ".join(changed) if changed else "No component changed; what did is below")
    return title if old.intent == new.intent else f"{title}\n\nversions.yaml itself changed, too."


def _components(old: Lock | None, new: Lock) -> str:
    before = old.versions if old else {}
    rows = [
        [name, before.get(name, "—"), version, _links(name, before.get(name), version)]
        for name, version in sorted(new.versions.items())
    ]
    return table(["component", "old", "new", "upstream"], rows)


def _embedded(old: Lock | None, new: Lock) -> str:
    rows = []
    for component in sorted({*new.embedded, *(old.embedded if old else {})}):
        before = old.embedded.get(component, {}) if old else {}
        after = new.embedded.get(component, {})
        rows += [
            [
                component,
                name,
                before.get(name, "—"),
                after.get(name, "—"),
                _links(name, before.get(name), after.get(name)),
            ]
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]
    return _section("What is in them", ["in", "what", "old", "new", "upstream"], rows)


def _base(old: Lock | None, new: Lock) -> str:
    if old and old.base == new.base:
        return ""
    before = f"`{old.base.image}@{old.base.digest}`" if old else "—"
    return _section("Base image", ["old", "new"], [[before, f"`{new.base.image}@{new.base.digest}`"]])


def _packages(title: str, older: Iterable[Artifact], newer: Iterable[Artifact]) -> str:
    """Folded: added, removed and changed packages; platforms with the same change share a row."""
    before = {(file.component, file.platform): file.version for file in older}
    after = {(file.component, file.platform): file.version for file in newer}
    changes: dict[tuple[str, str, str], list[str]] = {}
    for name, platform in sorted(before.keys() | after.keys()):
        first, last = before.get((name, platform), "—"), after.get((name, platform), "—")
        if first != last:
            changes.setdefault((name, first, last), []).append(platform.architecture)
    if not changes:
        return ""
    counts = {
        "added": sum(first == "—" for _, first, _ in changes),
        "removed": sum(last == "—" for _, _, last in changes),
        "changed": sum("—" not in (first, last) for _, first, last in changes),
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    rows = [[name, ", ".join(platforms), first, last] for (name, first, last), platforms in changes.items()]
    return folded(f"{title}: {told}", table(["package", "platforms", "old", "new"], rows))


def _sizes(old: Lock | None, new: Lock) -> str:
    platforms = sorted({*new.platforms, *(old.platforms if old else ())})
    rows = []
    named: list[tuple[str, Callable[[Lock], Iterable[Artifact]]]] = [
        (platform.value, partial(Lock.files, platform=platform)) for platform in platforms
    ]
    if new.airgap or (old and old.airgap):
        named += [(f"{platform} airgap", partial(_of_airgap, platform=platform)) for platform in platforms]
    for name, files in named:
        before, after = (_total(files(lock)) if lock else None for lock in (old, new))
        row = [name, _told(before), _told(after)]
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


def _of_airgap(lock: Lock, platform: Platform) -> Iterable[Artifact]:
    """What the variant airgap has beside the image's own files."""
    return (file for file in lock.airgap if file.platform == platform)


def _total(files: Iterable[Artifact]) -> tuple[int, int] | None:
    """The files' bytes, and how many have no size; None without files."""
    sizes = [file.size for file in files]
    return (sum(size or 0 for size in sizes), sizes.count(None)) if sizes else None


def _told(total: tuple[int, int] | None) -> str:
    if total is None:
        return "—"
    return f"{size(total[0])}" + (f" and {total[1]} files of unknown size" if total[1] else "")


def _evidence(old: Lock | None, new: Lock) -> str:
    """Where the reason to believe a digest is another one than before."""
    if old is None:
        return ""
    before = {(file.component, file.platform): _grade(file) for file in old.all_files}
    rows = [
        [file.component, file.platform.architecture, before[file.component, file.platform], _grade(file)]
        for file in new.all_files
        if before.get((file.component, file.platform), _grade(file)) != _grade(file)
    ]
    if _grade(old.base) != _grade(new.base):
        rows.append(["base image", "all", _grade(old.base), _grade(new.base)])
    return _section("Evidence", ["file", "platform", "old", "new"], rows)


def _grade(of: Artifact | Base) -> str:
    return of.grade.value


def _replaced(old: Lock | None, new: Lock) -> str:
    """Files whose version stayed and whose bytes did not: somebody has to ask why."""
    before = {(file.component, file.version, file.platform): file.digest for file in old.all_files} if old else {}
    rows = []
    for file in new.all_files:
        was = before.get((file.component, file.version, file.platform), file.digest)
        if was != file.digest:
            what = f"{file.component} {file.version}"
            rows.append([what, file.platform.architecture, f"`{was}`", f"`{file.digest}`"])
    return _section("The same version, other bytes: find out why", ["file", "platform", "old", "new"], rows)


def _links(name: str, before: str | None, after: str | None) -> str:
    """The release, and what happened since the version before."""
    if name not in _TAGS or not after or not re.fullmatch(_RELEASED, after):
        return ""
    repository = f"k3s-io/{name}" if "-k3s" in after else _TAGS[name][0]  # k3s's own builds are tagged in its forks
    url = f"https://github.com/{repository}"
    found = [f"[release]({url}/releases/tag/{_tag(name, after)})"]
    if before and before != after and re.fullmatch(_RELEASED, before) and ("-k3s" in before) == ("-k3s" in after):
        found.append(f"[changes]({url}/compare/{_tag(name, before)}...{_tag(name, after)})")
    return ", ".join(found)


def _tag(name: str, version: str) -> str:
    plain = version.removeprefix("v")
    pattern = _TAGS[name][1]
    if name == "docker" and compat.number(plain) < (29, 0, 0):
        pattern = "v{}"
    return quote(pattern.format(plain))


def _sentences(title: str, sentences: Sequence[str]) -> str:
    return "\n".join([f"### {title}", "", *(f"- {sentence}" for sentence in sentences)]) if sentences else ""


def _section(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"### {title}\n\n{table(columns, rows)}" if rows else ""
