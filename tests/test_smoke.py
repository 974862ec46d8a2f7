"""Smoke without an engine: what a binary tells, what is read out of layers, what turns the tier red, the reports."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import struct
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import layout as layouts
from pipeline.lock import Lock
from pipeline.log import Log
from pipeline.oci import INDEX, MANIFEST, Digest
from pipeline.platforms import Platform
from pipeline.rehearsal.standin_build import build as standin
from pipeline.release import Check, SmokeReport, State, Tier, TierReport
from pipeline.smoke import elf, files, report
from pipeline.smoke.record import Recorder
from tests.examples import LOCK, VERSIONS, digest

AMD64 = Platform.AMD64


def binary(text: str = "", platform: Platform = AMD64) -> bytes:
    """An ELF header of that platform, and some text."""
    head = b"\x7fELF\x02\x01\x01" + b"\0" * 9 + struct.pack("<HH", 2, platform.names.elf_machine)
    return head + b"\0" * 44 + text.encode()


def go_binary(version: str, ldflags: str = "") -> bytes:
    """A binary with Go's inline build information."""

    def string(text: bytes) -> bytes:
        length, out = len(text), b""
        while length >= 0x80:
            out += bytes([length & 0x7F | 0x80])
            length >>= 7
        return out + bytes([length]) + text

    module = f"path\texample.org/cmd\nmod\texample.org\t{version}\th1:x\ndep\texample.org/dep\tv2.0.0\n"
    module += f'build\t-ldflags="{ldflags}"\nbuild\tGOARCH=amd64\n'
    head = binary()
    info = b"\xff Go buildinf:" + bytes([8, 2]) + b"\0" * 16
    info += string(b"go1.25.1") + string(b"s" * 16 + module.encode() + b"e" * 16)
    return head + b"\0" * (-len(head) % 16) + info + b"\0" * 64


def test_go_build_information() -> None:
    found = elf.go_build(go_binary("v1.2.3", "-X main.version=9"))
    assert found is not None
    assert (found.go, found.path, found.version) == ("go1.25.1", "example.org/cmd", "v1.2.3")
    assert found.settings["-ldflags"] == "-X main.version=9"
    assert found.dependencies == {"example.org/dep": "v2.0.0"}


def test_the_official_kubectl_tells_its_version() -> None:
    kubectl = shutil.which("kubectl")
    assert kubectl, "kubectl is one of the tests' requirements"
    data = Path(kubectl).read_bytes()
    assert elf.machine(data[:20]) in {platform.names.elf_machine for platform in Platform}
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


class Image:
    """A one-platform image on disk, as a layout, out of plain files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = folder / "blobs" / "sha256"
        self.blobs.mkdir(parents=True)
        self.files: dict[str, bytes] = {}
        self.config: dict[str, object] = {
            "Entrypoint": ["/usr/local/sbin/dind-k3s-entrypoint"],
            "Healthcheck": {"Test": ["CMD", "healthcheck"]},
            "Volumes": {"/app/k3s": {}, "/var/lib/docker": {}},
        }
        artifacts = []
        entries = []
        for file in LOCK.artifacts:
            if file.platform != AMD64:
                continue
            data = binary(f"{file.component} {VERSIONS[file.component]} ")
            for path in files.BINARIES[file.component]:
                self.files[path] = data
            locked = replace(file, digest=Digest.of(data))
            artifacts.append(locked)
            entries.append({"component": file.component, "version": file.version, "sha256": locked.digest.hex})
        for name in ("containerd", "runc", "ctr", "containerd-shim-runc-v2"):
            self.files[f"usr/local/bin/{name}"] = go_binary("v1.0.0")
        self.files["usr/bin/python3"] = binary()
        self.files["usr/local/bin/doctor"] = b"#!/usr/bin/env python3\n"
        self.files["usr/share/dind-k3s/manifest.json"] = json.dumps(entries).encode()
        self.lock: Lock = replace(LOCK, artifacts=tuple(artifacts))

    def put(self, data: bytes) -> dict[str, object]:
        (self.blobs / Digest.of(data).hex).write_bytes(data)
        return {"digest": Digest.of(data).text, "size": len(data)}

    def check(self, *later: Mapping[str, bytes], rehearsed: bool = False) -> TierReport:
        """Run the tier; `later`: more layers on top."""
        layers = [
            self.put(gzip.compress(tarred(layer), mtime=0)) | {"mediaType": "layer"} for layer in (self.files, *later)
        ]
        config = self.put(json.dumps({"architecture": "amd64", "os": "linux", "config": self.config}).encode())
        manifest = {"mediaType": MANIFEST, "config": config | {"mediaType": "config"}, "layers": layers}
        entry = self.put(json.dumps(manifest).encode()) | {"mediaType": MANIFEST}
        entry |= {"platform": {"os": "linux", "architecture": "amd64"}}
        index = self.put(json.dumps({"mediaType": INDEX, "manifests": [entry]}).encode())
        recorder = Recorder(Tier.FILES, "nothing executed", Log(quiet=True))
        layout = layouts.read(self.folder, Digest(str(index["digest"])))
        files.run(AMD64, self.lock, layout, Digest(str(entry["digest"])), recorder, rehearsed=rehearsed)
        return recorder.report()


def tarred(content: Mapping[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return raw.getvalue()


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


def test_a_good_image_passes(image: Image) -> None:
    ended = image.check()
    assert ended.state == State.PASSED, ended.reason


K3S = "usr/local/bin/k3s"


def test_a_binary_of_another_architecture_is_named(image: Image) -> None:
    image.files["usr/lib/libx.so"] = binary(platform=Platform.ARM64)
    ended = image.check()
    assert ended.state == State.FAILED
    assert "/usr/lib/libx.so is for linux/arm64" in ended.reason


def test_a_wrong_version_is_named(image: Image) -> None:
    image.files["usr/local/bin/dockerd"] = binary("docker 29.7.3 ")
    assert "/usr/local/bin/dockerd does not name version 29.7.2" in image.check().reason


def test_a_truncated_binary_is_named(image: Image) -> None:
    image.files[K3S] = image.files[K3S][:10]
    assert "/usr/local/bin/k3s is not an executable (truncated?): 10 bytes" in image.check().reason


def test_other_bytes_of_the_right_version_are_not_the_locked_ones(image: Image) -> None:
    image.files[K3S] += b"!"
    ended = image.check()
    assert hashlib.sha256(image.files[K3S]).hexdigest() in ended.reason


def test_a_missing_binary_and_a_whiteout_are_the_same(image: Image) -> None:
    assert "/usr/local/bin/kubectl is missing" in image.check({"usr/local/bin/.wh.kubectl": b""}).reason


def test_an_opaque_folder_hides_what_is_below(image: Image) -> None:
    assert "is missing" in image.check({"usr/local/bin/.wh..wh..opq": b""}).reason


def test_a_script_without_its_interpreter_is_named(image: Image) -> None:
    image.files["usr/local/bin/tool"] = b"#!/usr/bin/perl -w\n"
    assert "/usr/local/bin/tool needs /usr/bin/perl" in image.check().reason


def test_a_manifest_that_differs_from_the_lock_is_named(image: Image) -> None:
    image.files["usr/share/dind-k3s/manifest.json"] = b"[]"
    assert "manifest.json is missing or empty" in image.check().reason


def test_a_config_without_a_health_check_is_named(image: Image) -> None:
    del image.config["Healthcheck"]
    assert "no health check" in image.check().reason


def test_a_stand_in_is_only_for_rehearsals(image: Image) -> None:
    data = standin("v1.37.1+standin", "linux/amd64")
    image.files[K3S] = data
    image.lock = replace(
        image.lock,
        versions={**image.lock.versions, "k3s": "v1.37.1+standin"},
        artifacts=tuple(
            replace(file, version="v1.37.1+standin", digest=Digest.of(data)) if file.component == "k3s" else file
            for file in image.lock.artifacts
        ),
    )
    entries = json.loads(image.files["usr/share/dind-k3s/manifest.json"])
    for entry in entries:
        if entry["component"] == "k3s":
            entry |= {"version": "v1.37.1+standin", "sha256": Digest.of(data).hex}
    image.files["usr/share/dind-k3s/manifest.json"] = json.dumps(entries).encode()
    assert "not a rehearsal's" in image.check().reason
    ended = image.check(rehearsed=True)
    assert ended.state == State.PASSED, ended.reason


def smoked(*tiers: TierReport) -> SmokeReport:
    return SmokeReport(platform=AMD64, index=digest("index"), digest=digest("amd64"), tiers=tiers)


def test_junit_counts_failures_and_skips_and_survives_control_characters() -> None:
    bad = Check(name="dockerd answers", state=State.FAILED, seconds=1.5, detail="exit \x1b[31m <1> & more")
    good = Check(name="other", state=State.PASSED, seconds=0.5, detail="fine")
    boot = TierReport(tier=Tier.BOOT, state=State.FAILED, reason="x", where="native", checks=(bad, good))
    skipped = TierReport(tier=Tier.COMMANDS, state=State.NOT_RUN, reason="no handler", where="", checks=())
    root = ET.fromstring(report.junit([smoked(boot, skipped)]))
    suites = {suite.get("name"): suite for suite in root}
    assert suites["linux/amd64 boot"].get("failures") == "1"
    assert suites["linux/amd64 boot"].get("time") == "2.00"
    failure = suites["linux/amd64 boot"].find("testcase/failure")
    assert failure is not None
    assert "<1> & more" in str(failure.get("message"))
    skip = suites["linux/amd64 commands"].find("testcase/skipped")
    assert skip is not None
    assert skip.get("message") == "no handler"


def test_a_report_is_read_back(tmp_path: Path) -> None:
    check = Check(name="a", state=State.PASSED, seconds=0.5, detail="b")
    one = smoked(TierReport(tier=Tier.FILES, state=State.PASSED, reason="", where="here", checks=(check,)))
    one.write(tmp_path)
    assert SmokeReport.read(tmp_path, AMD64) == one


def test_a_failed_check_is_told_and_the_next_ones_still_run(capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(Tier.BOOT, "native", Log())
    with recorder.check("first"):
        raise AssertionError("it is red")
    with recorder.check("second") as told:
        told("green")
    ended = recorder.report()
    assert (ended.state, ended.reason) == (State.FAILED, "first: it is red")
    assert [check.state for check in ended.checks] == [State.FAILED, State.PASSED]
    assert "✗ first" in capsys.readouterr().err
