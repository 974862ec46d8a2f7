"""`bench size`: what the image's bytes are, per layer, component, package and file, beside what vendors publish.

Nothing is run: it reads dist/image/ and the lock. Sizes are those of the manifests, so they do not change from run to
run; only the seconds of the recompression do.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bench import plot, report
from pipeline.bench.elfparts import removable
from pipeline.components import COMPONENTS
from pipeline.core import cache as cached
from pipeline.core import records, stub
from pipeline.core.log import size
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.inputs import lock, versions
from pipeline.inputs.lock import Lock
from pipeline.oci import layout

if TYPE_CHECKING:
    from pipeline.workflow import Run

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FACTOR, ALLOWANCE = 1.10, 45_000_000  # the limit: FACTOR × what is published + ALLOWANCE bytes
EXACT = 1.02  # sizes change with versions alone
LARGE = 1_000_000  # bytes of a binary that is worth a look at its sections
LEVELS = (3, 9)  # of zstd

# A file that a layer has alone → the component that the layer is. The Dockerfile makes one layer for each.
_KNOWN = {
    "usr/local/bin/dockerd": "docker",
    "usr/local/libexec/docker/cli-plugins/docker-buildx": "buildx",
    "usr/local/libexec/docker/cli-plugins/docker-compose": "compose",
    "usr/local/bin/k3s": "k3s",
    "usr/local/bin/kubectl": "kubectl",
    "usr/local/sbin/dind-k3s-entrypoint": "our own files",
    "usr/share/dind-k3s/manifest.json": "manifest",
    "usr/bin/supervisord": "Debian packages",
}
_BASE = "base image"
# What is in Debian's packages and nothing in here runs: what it is → paths. A second look decides, not this list.
_UNUSED = {
    "perl beyond the base's, which git wants for `send-email`, `svn` and such": r"usr/(lib/[^/]+|share)/perl5?/",
    "C headers among those of perl, which only a compiler wants": r"usr/lib/[^/]+/perl/.*\.h$",
    "git's servers and mail": r"usr/lib/git-core/git-(daemon|http-backend|imap-send|http-push|shell|instaweb)$",
}
_TWIN = 65_536  # bytes from which on a file is looked at for another one with the same content


@dataclass(kw_only=True)
class Layer:
    """One layer, as it was read."""

    digest: Digest
    compressed: int  # bytes, as the manifest says
    unpacked: int = 0  # bytes of the tar archive
    name: str = ""
    files: dict[str, int] = field(default_factory=dict)  # path → bytes; links are not in it
    removable: dict[str, int] = field(default_factory=dict)  # a large binary → bytes of symbols and debug information
    digests: dict[str, str] = field(default_factory=dict)  # a file of _TWIN and more → its content's
    unused: dict[str, list[int]] = field(default_factory=dict)  # of _UNUSED: bytes, and packed one by one with zlib
    lists: dict[str, list[str]] = field(default_factory=dict)  # Debian package → its paths


def main(run: Run, *, write: bool, check: bool) -> dict[str, Any]:
    """Measure, print, compare or write. Raises IntentError, DigestMismatch, Slower."""
    image = records.Image.read(run.dist)
    own = lock_of(run, image)
    whole = layout.read(run.dist / records.LAYOUT, image.digest)
    parts = {part.digest: part for part in whole}
    found: dict[Platform, list[Layer]] = {}
    for platform, built in image.platforms.items():
        manifest = json.loads(parts[built.digest].path.read_bytes())
        with run.log.step(f"{platform}: {len(manifest['layers'])} layers"):
            found[platform] = [
                read(parts[Digest(entry["digest"])].path, Digest(entry["digest"]), entry["size"])
                for entry in manifest["layers"]
            ]
    host = Platform.host()
    packing = []
    if host in found:
        paths = [parts[layer.digest].path for layer in found[host]]
        with run.log.step(f"gzip and zstd {', '.join(map(str, LEVELS))} over the layers of {host}"):
            packing = recompress(paths)
    document = describe(found, published(own, run.cache), packing, host, image, own, stubs(own, run.cache))
    files = {"md": render(document), "svg": draw(document)}
    report.finish("size", document, files, run.root, run.log, write=write, check_=check)
    return document


def lock_of(run: Run, image: records.Image) -> Lock:
    """The lock that the image was built from: a rehearsal keeps its own beside the image."""
    if image.rehearsed:
        return lock.read(run.dist / "versions.lock.yaml", versions.read(run.dist / "versions.yaml"))
    return run.lock


def stubs(own: Lock, cache: Path) -> set[Platform]:
    """Return the platforms whose k3s is a rehearsal's stub, which its bytes say."""
    return {
        file.platform
        for file in own.artifacts
        if file.component == "k3s" and stub.is_stub(cached.require(cache, file.digest).read_bytes())
    }


def read(path: Path, digest: Digest, compressed: int) -> Layer:
    """Walk one gzip-compressed layer."""
    layer = Layer(digest=digest, compressed=compressed)
    with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name = member.name.removeprefix("./").strip("/")
            if not member.isreg():
                continue
            layer.files[name] = member.size
            fits = [what for what, pattern in _UNUSED.items() if re.match(pattern, name)]
            if fits or member.size >= _TWIN or name.startswith("var/lib/dpkg/info/"):
                content = archive.extractfile(member)
                assert content is not None
                _look(layer, name, content.read(), fits)
        layer.unpacked = archive.offset
    layer.name = next((label for known, label in _KNOWN.items() if known in layer.files), _BASE)
    return layer


def _look(layer: Layer, name: str, content: bytes, fits: Sequence[str]) -> None:
    if name.startswith("var/lib/dpkg/info/") and name.endswith(".list"):
        package = name.rpartition("/")[2].removesuffix(".list").partition(":")[0]
        layer.lists[package] = content.decode(errors="replace").splitlines()
    if len(content) >= _TWIN:
        layer.digests[name] = Digest.of(content).hex
    if len(content) >= LARGE and (count := removable(content)) is not None:
        layer.removable[name] = count
    for what in fits:
        known = layer.unused.setdefault(what, [0, 0])
        known[0] += len(content)
        known[1] += len(zlib.compress(content, 6))


def twins(layers: Iterable[Layer]) -> list[list[str]]:
    """Files with the same content, each list sorted; those of the largest first."""
    sizes = {name: count for layer in layers for name, count in layer.files.items()}
    known: dict[str, list[str]] = {}
    for layer in layers:
        for name, digest in layer.digests.items():
            known.setdefault(digest, []).append(name)
    return sorted((sorted(names) for names in known.values() if len(names) > 1), key=lambda names: -sizes[names[0]])


def published(own: Lock, cache: Path) -> dict[Platform, dict[str, int]]:
    """What the vendors publish, in bytes, as it is downloaded."""
    found: dict[Platform, dict[str, int]] = {}
    for file in own.artifacts:
        if file.component in COMPONENTS:
            count = file.size or cached.require(cache, file.digest).stat().st_size
            found.setdefault(file.platform, {})[file.component] = count
    return found


def recompress(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """All layers, packed by each way on one core: bytes, seconds to pack, seconds to unpack."""
    ways: list[tuple[str, Callable[[bytes], bytes], Callable[[bytes], bytes]]] = [
        ("gzip 6", lambda data: gzip.compress(data, 6), lambda data: zlib.decompress(data, 31)),
        *((f"zstd {level}", _packer(level), zstd.decompress) for level in LEVELS),
    ]
    found = [{"name": name, "bytes": 0, "pack": 0.0, "unpack": 0.0} for name, _, _ in ways]
    for path in paths:
        data = gzip.decompress(path.read_bytes())
        for entry, (_, pack, unpack) in zip(found, ways, strict=True):
            started = time.monotonic()
            packed = pack(data)
            middle = time.monotonic()
            assert len(unpack(packed)) == len(data)
            entry["bytes"] = int(str(entry["bytes"])) + len(packed)
            entry["pack"] = round(float(str(entry["pack"])) + middle - started, 2)
            entry["unpack"] = round(float(str(entry["unpack"])) + time.monotonic() - middle, 2)
    return [dict(entry) for entry in found]


def _packer(level: int) -> Callable[[bytes], bytes]:
    return lambda data: bytes(zstd.compress(data, level))


def package_sizes(layers: Iterable[Layer]) -> dict[str, int]:
    """Debian package of our own layer → bytes of its files that are in the image; the base's are not ours to choose."""
    for layer in layers:
        if layer.name == "Debian packages":
            return {package: sum(_size(layer.files, path) for path in paths) for package, paths in layer.lists.items()}
    return {}


def _size(files: Mapping[str, int], path: str) -> int:
    """A package may name /lib/x for what the merged /usr has as /usr/lib/x."""
    name = path.strip("/")
    return files.get(name, files.get(f"usr/{name}", 0))


def describe(
    found: Mapping[Platform, Sequence[Layer]],
    vendors: Mapping[Platform, Mapping[str, int]],
    packing: Sequence[Mapping[str, Any]],
    host: Platform | None,
    image: records.Image,
    own: Lock,
    stub: Collection[Platform],
) -> dict[str, Any]:
    """Return everything that a reader needs to judge or repeat it; `stub`: the platforms whose k3s is a stub."""
    platforms, targets = [], []
    for platform, layers in found.items():
        compressed = sum(layer.compressed for layer in layers)
        theirs = vendors[platform]
        k3s = next((layer.compressed for layer in layers if layer.name == "k3s"), 0)
        limit = round(FACTOR * sum(theirs.values()) + ALLOWANCE)
        without = round(FACTOR * (sum(theirs.values()) - theirs["k3s"]) + ALLOWANCE)
        packed = sum(layer.compressed for layer in layers if layer.name in COMPONENTS)
        if platform in stub:
            targets.append(_target(f"{platform}: of the limit, k3s left out on both sides", compressed - k3s, without))
        else:
            targets.append(_target(f"{platform}: of the limit", compressed, limit))
        files = {name: count for layer in layers for name, count in layer.files.items()}
        packages = package_sizes(layers)
        platforms.append(
            {
                "platform": platform.value,
                "compressed": compressed,
                "unpacked": sum(layer.unpacked for layer in layers),
                "published": dict(sorted(theirs.items())),
                "limit": without if platform in stub else limit,
                "if packed": round(compressed / (FACTOR * packed + ALLOWANCE), 3),
                "layers": [
                    {
                        "name": layer.name,
                        "digest": layer.digest.text,
                        "compressed": layer.compressed,
                        "unpacked": layer.unpacked,
                        "files": len(layer.files),
                    }
                    for layer in layers
                ],
                "largest": [[name, count] for name, count in _top(files, 20)],
                "packages": [[name, count] for name, count in _top(packages, 20)],
                "all packages": sum(packages.values()),
                "symbols": [
                    [name, count]
                    for name, count in _top({k: v for layer in layers for k, v in layer.removable.items()}, 20)
                    if count
                ],
                "unused": {what: both for layer in layers for what, both in layer.unused.items()},
                "twins": [[files[names[0]] * (len(names) - 1), *names] for names in twins(layers)],
                "byte code": sum(count for name, count in files.items() if name.endswith(".pyc")),
            }
        )
    return {
        "rehearsed": image.rehearsed,
        "stub k3s": sorted(stub),
        "image": image.annotations.get("org.opencontainers.image.version", ""),
        "host": host.value if host else "",
        "machine": report.machine(),
        "versions": {name: own.versions[name] for name in COMPONENTS},
        "platforms": platforms,
        "packing": list(packing),
        "targets": targets,
    }


def _target(name: str, count: int, limit: int) -> dict[str, Any]:
    return report.target(name, [count / limit], 1.0, factor=EXACT)


def _top(sizes: Mapping[str, int], count: int) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:count]


def draw(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/size.svg."""
    rows = []
    for one in document["platforms"]:
        parts: dict[str, float] = {}
        for layer in one["layers"]:
            parts[layer["name"]] = parts.get(layer["name"], 0.0) + layer["compressed"] / 1e6
        name = one["platform"].partition("/")[2]
        rows.append(plot.Row(name=f"{name}, image", parts=parts, limit=one["limit"] / 1e6))
        theirs = {vendor: one["published"][vendor] / 1e6 for vendor in parts if vendor in one["published"]}
        rows.append(plot.Row(name=f"{name}, published", parts=theirs))
    return plot.bars("What the compressed bytes are (black line: the limit)", rows, "MB")


def render(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/size.md."""
    lines = [
        "# Benchmark: size",
        "",
        f"Written by `{report.command('size', document)}`; every figure: [size.json](size.json).",
        "",
        f"The limit for each platform is {FACTOR:.2f} × what docker, k3s, kubectl, buildx and compose publish "
        f"+ {size(ALLOWANCE)}, compressed.",
    ]
    if document["stub k3s"]:
        lines.append(
            f"k3s is a stub for {' and '.join(document['stub k3s'])}, so the ratio for the real one cannot be shown: "
            "k3s is left out on both sides. A real k3s is compressed in itself, so it adds about the same to both."
        )
    lines += [
        "",
        *report.machine_lines(document),
        "",
        *report.targets_table(document["targets"]),
        "",
        "That is an easy limit, for vendors publish all but docker uncompressed. Over their files as a layer packs "
        "them, the same formula would give "
        + ", ".join(f"{one['if packed']:.2f} for {one['platform']}" for one in document["platforms"])
        + ": what base and Debian packages are beyond the allowance is the distance to 1.",
        "",
        "![what the bytes are](size.svg)",
    ]
    for one in document["platforms"]:
        lines += ["", f"## {one['platform']}", "", *_layers(one)]
    lines += _packing(document)
    for one in document["platforms"]:
        if one["platform"] == document["host"] or len(document["platforms"]) == 1:
            lines += ["", f"## The largest files ({one['platform']}, unpacked)", ""]
            lines += report.table(["file", "size"], [[f"`/{name}`", size(count)] for name, count in one["largest"]])
            lines += _could_go(one)
    return "\n".join(lines) + "\n"


def _layers(one: Mapping[str, Any]) -> list[str]:
    rows: list[list[object]] = []
    for layer in one["layers"]:
        theirs = one["published"].get(layer["name"])
        cells = [size(layer["compressed"]), size(layer["unpacked"]), size(theirs) if theirs else "", layer["files"]]
        rows.append([layer["name"], *cells])
    total = [size(one["compressed"]), size(one["unpacked"]), size(sum(one["published"].values()))]
    rows.append(["sum", *total, sum(layer["files"] for layer in one["layers"])])
    return report.table(["layer", "compressed", "unpacked", "published", "files"], rows)


def _packing(document: Mapping[str, Any]) -> list[str]:
    if not document["packing"]:
        return []
    gzip_ = document["packing"][0]
    rows = [
        [one["name"], size(one["bytes"]), f"{one['bytes'] / gzip_['bytes']:.2f}", f"{one['pack']:.1f} s",
         f"{one['unpack']:.1f} s"]
        for one in document["packing"]
    ]  # fmt: skip
    return [
        "",
        f"## gzip and zstd ({document['host']}, one core)",
        "",
        *report.table(["way", "all layers", "beside gzip", "to pack", "to unpack"], rows),
        "",
        "Packed and unpacked by the libraries of Python, zlib and zstd; BuildKit's gzip is another and quicker one "
        "([build.md](build.md)). The layers stay gzip, which every engine and registry reads; zstd layers need "
        "containerd 1.5, docker 23.",
    ]


def _could_go(one: Mapping[str, Any]) -> list[str]:
    packages = report.table(["package", "unpacked"], [[name, size(count)] for name, count in one["packages"]])
    symbols = sum(count for _, count in one["symbols"])
    lines = ["", "## What could go", ""]
    for what, (unpacked, packed) in sorted(one["unused"].items(), key=lambda item: -item[1][0]):
        lines.append(f"- {what}: {size(unpacked)} unpacked, about {size(packed)} compressed.")
    if one["twins"]:
        names = "; ".join(" = ".join(f"`/{name}`" for name in entry[1:]) for entry in one["twins"][:3])
        count = sum(entry[0] for entry in one["twins"])
        lines.append(f"- The same content twice: {size(count)} unpacked, above all {names}.")
    return [
        *lines,
        f"- Symbols and debug information of large binaries: {size(symbols)} unpacked"
        + (f", above all {', '.join(f'`/{name}`' for name, _ in one['symbols'][:3])}." if symbols > LARGE else ".")
        + " The vendors' stay as they are: a stripped file is no longer the one that they published.",
        f"- Python's byte code: {size(one['byte code'])} unpacked; without it every start would compile it anew.",
        f"- Debian packages: {size(one['all packages'])} unpacked, the largest below. "
        "[docs/image.md](../image.md) has the reason of each that was asked for; the others are what those depend on.",
        "",
        *packages,
    ]
