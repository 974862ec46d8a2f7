"""Reading binaries: machine, size, Go build information, version."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.platforms import Platform
from pipeline.inspect import elf
from tests.helpers.binaries import binary, go_binary


def test_go_build_information() -> None:
    build = elf.go_build(go_binary("v1.2.3", "-X main.version=9"))
    assert build is not None
    assert (build.go, build.path, build.version) == ("go1.25.1", "example.org/cmd", "v1.2.3")
    assert build.settings["-ldflags"] == "-X main.version=9"
    assert build.dependencies == {"example.org/dep": "v2.0.0"}


def test_the_official_kubectl_has_its_version() -> None:
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
    ("text", "version", "expected"),
    [
        ("version 28.5.2+dfsg4 ", "28.5.2", True),
        ("version 128.5.2", "28.5.2", False),
        ("version 28.5.20", "28.5.2", False),
        ("v1.37.1+k3s1", "v1.37.1+k3s1", True),
        ("v1.37.1+k3s10", "v1.37.1+k3s1", False),
        ("", "1.0.0", False),
    ],
)
def test_a_version_is_not_found_inside_a_longer_one(text: str, version: str, expected: bool) -> None:
    assert bool(elf.version_evidence(binary(text), version)) == expected


@pytest.mark.parametrize("end", range(0, 400, 7))
def test_a_truncated_program_does_not_crash(end: int) -> None:
    whole = go_binary("v1.2.3")
    assert elf.go_build(whole[:end]) in (None, elf.go_build(whole))
    assert (elf.header(whole[:end]) is not None) == (end >= 64)


def test_the_evidence_is_where_the_version_is() -> None:
    assert elf.version_evidence(go_binary("v1.2.3"), "1.2.3") == "Go module version v1.2.3"
    ldflags = elf.version_evidence(go_binary("(devel)", "-X main.version=v1.2.3"), "1.2.3")
    assert ldflags == "Go build information (-ldflags)"
    assert elf.version_evidence(go_binary("(devel)") + b"Docker version 1.2.3", "1.2.3") == "text in the binary"
    assert elf.version_evidence(go_binary("(devel)", dependency="v1.2.3"), "1.2.3") is None


def test_big_endian_and_32_bit_headers_are_read() -> None:
    s390 = b"\x7fELF\x02\x02\x01" + b"\0" * 9 + b"\x00\x02\x00\x16" + b"\0" * 60
    header = elf.header(s390)
    assert header is not None
    assert elf.machine_name(header) == "ELF machine 22, 64 bit"
    assert elf.header(b"#!/bin/sh\n" + b" " * 80) is None


@pytest.mark.parametrize(
    ("data", "version"),
    [
        (go_binary("v1.2.3"), "v1.2.3"),
        (go_binary("v1.2.4-0.20260325154711-d2dbc0547253+dirty"), None),
        (go_binary("(devel)", "-s -X main.version=v1.2.3 -w"), "v1.2.3"),
        (go_binary("(devel)", "-X 'main.version=1.2.3-rc.1' -w"), "1.2.3-rc.1"),
        (go_binary("(devel)", "-X main.minimumVersion=1.0.0 -X main.version=v1.2.3"), None),
        (go_binary("(devel)") + b"text 9.9.9 text\x00v1.2.3\x00", "v1.2.3"),
        (go_binary("(devel)") + b"\x001.1.5+ds1\x00\x001.1.5+ds1-1+deb12u1\x00", "1.1.5+ds1"),
        (go_binary("(devel)") + b"\x001.1.5\x00\x002.0.0\x00", None),
        (go_binary("(devel)") + b"unknown error 2.1.9+unknownmissing", "2.1.9"),
        (go_binary("(devel)") + b"\x00v2.2.0\x00 2.1.9+unknown", "v2.2.0"),
        (binary("tini version 0.19.0 - git.de40ad0\0"), "0.19.0"),
        (binary("\x001.2.3\x00"), None),
    ],
)
def test_the_version_that_a_program_states(data: bytes, version: str | None) -> None:
    assert elf.stated_version(data) == version


_PIECES = ["\0", "\0v1", "1.2.3", ".3.4", "1", "2", ".", "v", "-rc.1", "+k3s1", "x", "~", "12345678901234567890123"]


@example("\0v12345678901234567890123.3.4\0")
@given(st.lists(st.sampled_from(_PIECES), max_size=20).map("".join))
def test_versions_set_by_the_linker_are_those_of_a_plain_expression(text: str) -> None:
    plain = re.findall(r"(?<=\0)v?\d+\.\d+\.\d+(?:[-+~][0-9A-Za-z.+~-]{1,40})?(?=\0)", text)
    assert list(elf.set_by_linker(text.encode())) == plain


def test_a_replaced_module() -> None:
    build = elf.go_build(go_binary("(devel)", modules={"example.org/a": "v1.0.0 => example.org/fork v0.3.19-k3s5"}))
    assert build is not None
    assert build.dependencies == {"example.org/dep": "v2.0.0", "example.org/a": "v0.3.19-k3s5"}
    assert build.replaced == {"example.org/a": "example.org/fork"}


def test_the_official_kubectl_states_its_version() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    assert elf.stated_version(Path(shutil.which("kubectl", path=path) or "").read_bytes()) == "v1.37.1"
