"""What a binary tells: its machine, its length, how Go built it, its version."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.platforms import Platform
from pipeline.smoke import elf
from tests.binaries import binary, go_binary


def test_go_build_information() -> None:
    found = elf.go_build(go_binary("v1.2.3", "-X main.version=9"))
    assert found is not None
    assert (found.go, found.path, found.version) == ("go1.25.1", "example.org/cmd", "v1.2.3")
    assert found.settings["-ldflags"] == "-X main.version=9"
    assert found.dependencies == {"example.org/dep": "v2.0.0"}


def test_the_official_kubectl_tells_its_version() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kubectl = shutil.which("kubectl", path=path)
    assert kubectl, "kubectl is one of the tests' requirements"
    data = Path(kubectl).read_bytes()
    header = elf.header(data[: elf.HEAD])
    assert header is not None
    assert elf.machine_name(header) in set(Platform)
    assert 0 < header.end <= len(data)
    assert elf.version_evidence(data, "v1.37.1")
    assert elf.version_evidence(data, "v1.37.10") is None


@pytest.mark.parametrize(
    ("text", "version", "found"),
    [
        ("version 28.5.2+dfsg4 ", "28.5.2", True),
        ("version 128.5.2", "28.5.2", False),
        ("version 28.5.20", "28.5.2", False),
        ("v1.37.1+k3s1", "v1.37.1+k3s1", True),
        ("v1.37.1+k3s10", "v1.37.1+k3s1", False),
        ("", "1.0.0", False),
    ],
)
def test_a_version_is_not_found_inside_a_longer_one(text: str, version: str, found: bool) -> None:
    assert bool(elf.version_evidence(binary(text), version)) == found


@pytest.mark.parametrize("end", range(0, 400, 7))
def test_a_program_that_is_cut_off_anywhere_is_no_crash(end: int) -> None:
    whole = go_binary("v1.2.3")
    assert elf.go_build(whole[:end]) in (None, elf.go_build(whole))
    assert (elf.header(whole[:end]) is not None) == (end >= 64)


def test_the_evidence_tells_where_the_version_was_found() -> None:
    assert elf.version_evidence(go_binary("v1.2.3"), "1.2.3") == "Go module version v1.2.3"
    ldflags = elf.version_evidence(go_binary("(devel)", "-X main.version=v1.2.3"), "1.2.3")
    assert ldflags == "Go build information (-ldflags)"
    assert elf.version_evidence(go_binary("(devel)") + b"Docker version 1.2.3", "1.2.3") == "text in the binary"
    assert elf.version_evidence(go_binary("(devel)", dependency="v1.2.3"), "1.2.3") is None


def test_big_endian_and_32_bit_headers_are_read() -> None:
    s390 = b"\x7fELF\x02\x02\x01" + b"\0" * 9 + b"\x00\x02\x00\x16" + b"\0" * 60
    found = elf.header(s390)
    assert found is not None
    assert elf.machine_name(found) == "ELF machine 22, 64 bit"
    assert elf.header(b"#!/bin/sh\n" + b" " * 80) is None
