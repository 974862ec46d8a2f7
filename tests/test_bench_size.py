"""`bench size`: layers are read as they are, the limit is the contract's, docs follow the figures."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench import sizing
from pipeline.bench.elfparts import removable
from pipeline.bench.sizing import Layer
from pipeline.core import records
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.inputs import lock, versions

ROOT = Path(__file__).resolve().parent.parent


def elf(sections: dict[str, int]) -> bytes:
    """An ELF file that is nothing but a section table."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*sections, ".shstrtab"))
    table = [
        struct.pack("<IIQQQQ16x8x", names.index(name.encode()), 1, 0, 0, 64, size) for name, size in sections.items()
    ]
    table.append(struct.pack("<IIQQQQ16x8x", names.index(b".shstrtab"), 3, 0, 0, 64, len(names)))
    head = b"\x7fELF\x02\x01" + bytes(34) + struct.pack("<Q", 64 + len(names)) + bytes(10)
    head += struct.pack("<HHH", 64, len(table), len(table) - 1)
    return head + names + b"".join(table)


def layer(tmp_path: Path, files: dict[str, bytes]) -> Layer:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("usr/bin/link")
        link.type, link.linkname = tarfile.SYMTYPE, "x"
        archive.addfile(link)
    packed = gzip.compress(raw.getvalue())
    path = tmp_path / "layer"
    path.write_bytes(packed)
    return sizing.read(path, Digest.of(packed), len(packed))


def test_what_strip_would_take_is_symbols_and_debug_information() -> None:
    assert removable(elf({".text": 5000, ".symtab": 300, ".strtab": 200, ".debug_info": 1000})) == 1500
    assert removable(elf({".text": 5000})) == 0
    assert removable(b"#!/bin/sh\n" + bytes(100)) is None
    assert removable(elf({".symtab": 300})[:-64]) == 0, "a table that is cut off"


def test_a_layer_is_known_by_a_file_of_its_component_and_read_file_by_file(tmp_path: Path) -> None:
    big = elf({".symtab": 700}) + bytes(sizing.LARGE)
    made = layer(
        tmp_path,
        {
            "usr/bin/supervisord": b"x" * 10,
            "var/lib/dpkg/info/tool:amd64.list": b"/.\n/usr\n/lib/tool\n/usr/bin/supervisord\n",
            "usr/lib/tool": big,
            "usr/lib/again": big,
            "usr/lib/x/perl/5/CORE/perl.h": b"y" * 1000,
        },
    )
    assert made.name == "Debian packages"
    assert made.files["usr/lib/tool"] == len(big)
    assert "usr/bin/link" not in made.files
    assert made.removable == {"usr/lib/tool": 700, "usr/lib/again": 700}
    assert sizing.package_sizes([made])["tool"] == len(big) + 10, "through the merged /usr"
    assert sizing.twins([made]) == [["usr/lib/again", "usr/lib/tool"]]
    assert [unpacked for unpacked, _ in made.unused.values()] == [1000, 1000]
    assert all(packed < 100 for _, packed in made.unused.values())
    assert layer(tmp_path, {"etc/x": b""}).name == "base image"


def described(*, stub: bool) -> dict[str, Any]:
    layers = [
        Layer(digest=Digest.of(name.encode()), compressed=count, unpacked=3 * count, name=name, files={name: 3 * count})
        for name, count in {"base image": 50_000_000, "docker": 70_000_000, "k3s": 60_000_000}.items()
    ]
    vendors = {Platform.AMD64: {"docker": 80_000_000, "k3s": 70_000_000}}
    image = records.Image(
        digest=Digest.of(b""),
        inputs=Digest.of(b""),
        lock=Digest.of(b""),
        platforms={},
        annotations={"org.opencontainers.image.version": "v1"},
        rehearsed=stub,
    )
    own = lock.read(ROOT / "versions.lock.yaml", versions.read(ROOT / "versions.yaml"))
    packing = [
        {"name": name, "bytes": count, "pack": 1.0, "unpack": 0.5} for name, count in (("gzip 6", 10), ("zstd 3", 9))
    ]
    return sizing.describe(
        {Platform.AMD64: layers}, vendors, packing, Platform.AMD64, image, own, {Platform.AMD64} if stub else ()
    )


def test_the_limit_is_110_percent_of_what_is_published_and_45_megabytes() -> None:
    (target,) = described(stub=False)["targets"]
    assert target["median"] == pytest.approx(180 / (1.1 * 150 + 45), abs=0.001)
    assert target["holds"]


def test_a_stub_k3s_is_named_and_left_out_on_both_sides() -> None:
    document = described(stub=True)
    (target,) = document["targets"]
    assert target["median"] == pytest.approx(120 / (1.1 * 80 + 45), abs=0.001)
    text = sizing.render(document)
    assert "the ratio for the real one cannot be shown" in text
    assert "| zstd 3 | 9 B | 0.90 | 1.0 s | 0.5 s |" in text
    assert "stub" not in sizing.render(described(stub=False))


def test_recompression_packs_every_layer_and_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(gzip.compress(b"abcdefgh" * 100_000))
    found = sizing.recompress([path, path])
    assert [one["name"] for one in found] == ["gzip 6", *(f"zstd {level}" for level in sizing.LEVELS)]
    assert all(0 < one["bytes"] < 20_000 for one in found)


def test_page_and_drawing_are_what_the_figures_give() -> None:
    folder = ROOT / "docs/benchmarks"
    document = json.loads((folder / "size.json").read_text(encoding="utf-8"))
    assert sizing.render(document) == (folder / "size.md").read_text(encoding="utf-8")
    assert sizing.draw(document) == (folder / "size.svg").read_text(encoding="utf-8")
