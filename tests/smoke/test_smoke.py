"""Tier files on crafted layers: what turns it red, and with which sentence; the reports."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import smoke
from pipeline.components import AIRGAP
from pipeline.core import records, zstd
from pipeline.core.log import Log
from pipeline.core.names import INDEX, MANIFEST, Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import BuiltPlatform, Check, SmokeReport, State, Tier, TierReport, Variant
from pipeline.inputs.lock import Artifact, Lock
from pipeline.oci import layout as layouts
from pipeline.rehearsal import pause
from pipeline.rehearsal.stub_k3s_build import build as stub_k3s
from pipeline.smoke import files
from pipeline.smoke.booted import BootOptions
from pipeline.smoke.contents import Subject
from pipeline.smoke.record import Recorder
from tests.helpers.binaries import binary, go_binary
from tests.helpers.examples import AIRGAP_LOCK, LOCK, VERSIONS, digest
from tests.helpers.images import make

AMD64 = Platform.AMD64
MANIFEST_JSON = "usr/share/dind-k3s/manifest.json"


class Image:
    """A one-platform image on disk, as a layout, out of plain files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = folder / "blobs" / "sha256"
        self.blobs.mkdir(parents=True)
        self.files: dict[str, bytes] = {}
        self.modes: dict[str, int] = {}
        self.rootfs: dict[str, object] = {}
        self.pack: Callable[[bytes], bytes] = lambda plain: gzip.compress(plain, mtime=0)
        self.spoil: Callable[[], object] = lambda: None  # may change the topmost layer's file
        self.config: dict[str, object] = {
            "Entrypoint": ["/usr/local/sbin/dind-k3s-entrypoint"],
            "Healthcheck": {"Test": ["CMD", "/usr/local/bin/healthcheck"]},
            "Volumes": {"/app/k3s": {}, "/var/lib/docker": {}},
        }
        artifacts = []
        entries = []
        for file in LOCK.artifacts:
            if file.platform != AMD64:
                continue
            data = binary(f"{file.component} {VERSIONS[file.component]} ")
            for path in files.binaries(file.component):
                self.files[path] = data
            locked = replace(file, digest=Digest.of(data))
            artifacts.append(locked)
            entries.append({"component": file.component, "version": file.version, "sha256": locked.digest.hex})
        entries.append({"component": "dind-k3s", "version": "1"})
        for entry in entries:
            entry |= {"url": "https://example.org", "licence": "Apache-2.0"}
        for name in ("containerd", "runc", "ctr", "containerd-shim-runc-v2"):
            self.files[f"usr/local/bin/{name}"] = go_binary("v1.0.0")
        self.files["usr/bin/python3"] = binary()
        self.files["usr/local/bin/healthcheck"] = binary()
        self.files["usr/local/sbin/dind-k3s-entrypoint"] = b"#!/usr/bin/python3\n"
        self.files["usr/local/bin/doctor"] = b"#!/usr/bin/env python3\n"
        self.files[MANIFEST_JSON] = json.dumps(entries).encode()
        self.lock: Lock = replace(LOCK, artifacts=tuple(artifacts))

    def put(self, data: bytes) -> dict[str, object]:
        (self.blobs / Digest.of(data).hex).write_bytes(data)
        return {"digest": Digest.of(data).text, "size": len(data)}

    def with_digests(self) -> dict[str, bytes]:
        """The files, with the manifest's digests of them, unless a test has written those itself."""
        entries = json.loads(self.files[MANIFEST_JSON])
        ours = {path: data for path, data in self.files.items() if path.startswith("usr/local/")}
        digests = {f"/{path}": hashlib.sha256(data).hexdigest() for path, data in ours.items()}
        entries = [{"files": digests, **entry} for entry in entries]
        return self.files | {MANIFEST_JSON: json.dumps(entries).encode()}

    def check(
        self, *later: Mapping[str, bytes | str], rehearsed: bool = False, airgap: Artifact | None = None
    ) -> TierReport:
        """Run the tier; `later`: more layers on top."""
        archives = [tarred(layer, self.modes) for layer in (self.with_digests(), *later)]
        layers = [self.put(self.pack(archive)) | {"mediaType": "layer"} for archive in archives]
        unpacked = {"type": "layers", "diff_ids": [Digest.of(archive).text for archive in archives]}
        self.top = self.blobs / Digest(str(layers[-1]["digest"])).hex
        self.spoil()
        described = {"architecture": "amd64", "os": "linux", "config": self.config, "rootfs": unpacked | self.rootfs}
        config = self.put(json.dumps(described).encode())
        manifest = {"mediaType": MANIFEST, "config": config | {"mediaType": "config"}, "layers": layers}
        entry = self.put(json.dumps(manifest).encode()) | {"mediaType": MANIFEST}
        entry |= {"platform": {"os": "linux", "architecture": "amd64"}}
        index = self.put(json.dumps({"mediaType": INDEX, "manifests": [entry]}).encode())
        recorder = Recorder(Tier.FILES, "nothing executed", Log(quiet=True))
        top = Digest(str(index["digest"]))
        built = BuiltPlatform(digest=Digest(str(entry["digest"])), config=Digest(str(config["digest"])), size=0)
        image = records.Image(
            digest=top,
            inputs=top,
            lock=self.lock.digest,
            platforms={AMD64: built},
            annotations={},
            rehearsed=rehearsed,
            variant=Variant.AIRGAP if airgap else Variant.IMAGE,
        )
        lock = replace(self.lock, airgap=(airgap,) if airgap else ())
        subject = Subject(image=image, platform=AMD64, layout=layouts.read(self.folder, top), lock=lock)
        files.run(subject, recorder)
        return recorder.report()


def tarred(content: Mapping[str, bytes | str], modes: Mapping[str, int]) -> bytes:
    """A tar archive, in the order given; a text is the target of a symlink, behind `=` of a hard link."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.mode = modes.get(name, 0o755)
            if isinstance(data, str):
                member.type = tarfile.LNKTYPE if data.startswith("=") else tarfile.SYMTYPE
                member.linkname = data.removeprefix("=")
                archive.addfile(member)
            else:
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


def test_a_32_bit_binary_of_the_same_family_is_another_architecture(image: Image) -> None:
    image.files["usr/bin/old"] = b"\x7fELF\x01\x01\x01" + b"\0" * 9 + b"\x02\x00\x03\x00" + b"\0" * 60
    assert "/usr/bin/old is for ELF machine 3, 32 bit" in image.check().reason


def test_a_library_that_was_cut_off_is_named(image: Image) -> None:
    image.files["usr/lib/libx.so"] = binary("half of it", end=5000)
    assert "/usr/lib/libx.so is truncated: it has 74 bytes, its section headers end at 5000" in image.check().reason


def test_a_go_program_that_was_cut_off_in_its_build_information_is_named(image: Image) -> None:
    image.files["usr/local/bin/docker"] = go_binary("v29.7.2")[:150]
    assert "/usr/local/bin/docker does not name version 29.7.2" in image.check().reason


def test_the_version_of_a_dependency_is_not_the_programs(image: Image) -> None:
    image.files["usr/local/bin/docker"] = go_binary("v29.7.1", dependency="v29.7.2")
    reason = image.check().reason
    assert "does not name version 29.7.2; it was built as example.org/cmd v29.7.1" in reason


def test_a_link_in_the_place_of_a_binary_is_not_the_binary(image: Image) -> None:
    assert f"/{K3S} is not a regular file" in image.check({K3S: "/usr/bin/python3"}).reason


def test_a_hard_link_is_the_file_it_links_to(image: Image) -> None:
    data = image.files.pop(K3S)
    assert image.check({"usr/local/bin/other": b"", K3S: "=usr/local/bin/other"}).state == State.FAILED
    image.files["usr/local/lib/k3s"] = data
    assert f"/{K3S} is not a regular file" in image.check({K3S: "=usr/local/lib/k3s"}).reason


def test_a_program_that_nobody_may_execute_is_named(image: Image) -> None:
    image.modes[K3S] = 0o644
    assert f"/{K3S} may not be executed by everybody: its mode is 0644" in image.check().reason


def test_an_unknown_set_uid_file_is_named(image: Image) -> None:
    image.files["usr/bin/su"] = image.files["usr/local/bin/shell"] = binary()
    image.modes["usr/bin/su"] = image.modes["usr/local/bin/shell"] = 0o4755
    assert image.check().reason == "set-uid and set-gid files: /usr/local/bin/shell has the mode 4755"


def test_an_entrypoint_that_is_not_there_is_named(image: Image) -> None:
    image.config["Entrypoint"] = ["/sbin/init"]
    assert "the entrypoint /sbin/init is not there" in image.check().reason


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: data[:-400] + b"\0" * 400, "is broken"),
        (lambda data: data[:-3] + b"abc", "is broken"),
        (lambda data: data[:4] + b"\1" + data[5:], "has changed: its file has the digest"),
    ],
)
def test_a_layer_that_has_changed_is_named(image: Image, damage: Callable[[bytes], bytes], sentence: str) -> None:
    image.spoil = lambda: image.top.write_bytes(damage(image.top.read_bytes()))
    reason = image.check({"etc/more": bytes(range(256)) * 9}).reason
    assert f"the layer sha256:{image.top.name} {sentence}" in reason


def test_a_layer_of_several_gzip_members_is_one_layer(image: Image) -> None:
    image.pack = lambda plain: gzip.compress(plain[:700]) + gzip.compress(plain[700:])
    assert image.check().state == State.PASSED


def test_a_layer_that_is_not_the_configs_is_named(image: Image) -> None:
    image.rootfs = {"diff_ids": [digest("other").text]}
    assert f"the config says {digest('other')}" in image.check().reason
    image.rootfs = {"diff_ids": []}
    assert "the manifest has 1 layers, the config 0" in image.check().reason


def test_a_missing_binary_and_a_whiteout_are_the_same(image: Image) -> None:
    assert "/usr/local/bin/kubectl is missing" in image.check({"usr/local/bin/.wh.kubectl": b""}).reason


def test_an_opaque_folder_hides_what_is_below(image: Image) -> None:
    assert "is missing" in image.check({"usr/local/bin/.wh..wh..opq": b""}).reason


def test_a_whiteout_hides_nothing_of_its_own_layer(image: Image) -> None:
    later = {"usr/local/bin/kubectl": image.files["usr/local/bin/kubectl"], "usr/local/bin/.wh.kubectl": b""}
    assert image.check(later).state == State.PASSED


def test_a_file_in_the_place_of_a_folder_hides_the_folder(image: Image) -> None:
    assert "is missing" in image.check({"usr/local/bin": "/usr/bin"}).reason


def test_an_interpreter_is_found_through_links(image: Image) -> None:
    image.files["usr/local/bin/tool"] = b"#!/bin/sh\n"
    assert "needs /bin/sh" in image.check().reason
    links = {"bin": "usr/bin", "usr/bin/sh": "../../etc/alternatives/sh", "etc/alternatives/sh": "/bin/dash"}
    assert image.check({**links, "usr/bin/dash": binary()}).state == State.PASSED
    assert "needs /bin/sh" in image.check({"bin": "bin"}).reason


def test_a_script_without_its_interpreter_is_named(image: Image) -> None:
    image.files["usr/local/bin/tool"] = b"#!/usr/bin/perl -w\n"
    assert "/usr/local/bin/tool needs /usr/bin/perl" in image.check().reason


def test_a_manifest_that_differs_from_the_lock_is_named(image: Image) -> None:
    image.files[MANIFEST_JSON] = b"[]"
    assert "manifest.json is missing or empty" in image.check().reason


def rewritten(image: Image, change: Callable[[dict[str, dict[str, str]]], object]) -> str:
    """Why the tier fails once the digests in the manifest were changed."""
    image.files[MANIFEST_JSON] = image.with_digests()[MANIFEST_JSON]
    entries = json.loads(image.files[MANIFEST_JSON])
    change({entry["component"]: entry["files"] for entry in entries})
    image.files[MANIFEST_JSON] = json.dumps(entries).encode()
    return image.check().reason


def test_a_manifest_that_does_not_tell_the_truth_about_files_is_named(image: Image) -> None:
    reason = rewritten(image, lambda files: [one.update({"/usr/local/bin/runc": "0" * 64}) for one in files.values()])
    assert "/usr/local/bin/runc is not what /usr/share/dind-k3s/manifest.json says" in reason
    reason = rewritten(image, lambda files: [one.update({"/usr/local/bin/gone": "0" * 64}) for one in files.values()])
    assert "/usr/local/bin/gone is not what" in reason


def test_a_file_that_the_manifest_does_not_know_is_named(image: Image) -> None:
    reason = rewritten(image, lambda files: [one.pop("/usr/local/bin/doctor") for one in files.values()])
    assert "/usr/local/bin/doctor is not in /usr/share/dind-k3s/manifest.json" in reason


def test_a_component_without_files_in_the_manifest_is_named(image: Image) -> None:
    assert "does not say the files of kubectl" in rewritten(image, lambda files: files["kubectl"].clear())


def test_a_config_without_a_health_check_is_named(image: Image) -> None:
    del image.config["Healthcheck"]
    assert "no health check" in image.check().reason


def test_a_stub_is_only_for_rehearsals(image: Image) -> None:
    data = stub_k3s("v1.37.1+standin", "linux/amd64")
    image.files[K3S] = data
    image.lock = replace(
        image.lock,
        versions={**image.lock.versions, "k3s": "v1.37.1+standin"},
        artifacts=tuple(
            replace(file, version="v1.37.1+standin", digest=Digest.of(data)) if file.component == "k3s" else file
            for file in image.lock.artifacts
        ),
    )
    entries = json.loads(image.files[MANIFEST_JSON])
    for entry in entries:
        if entry["component"] == "k3s":
            entry |= {"version": "v1.37.1+standin", "sha256": Digest.of(data).hex}
    image.files[MANIFEST_JSON] = json.dumps(entries).encode()
    assert "not a rehearsal's" in image.check().reason
    ended = image.check(rehearsed=True)
    assert ended.state == State.PASSED, ended.reason


def smoked(*tiers: TierReport) -> SmokeReport:
    return SmokeReport(platform=AMD64, index=digest("index"), digest=digest("amd64"), tiers=tiers)


def test_a_report_is_read_back(tmp_path: Path) -> None:
    check = Check(name="a", state=State.PASSED, seconds=0.5, detail="b")
    one = smoked(TierReport(tier=Tier.FILES, state=State.PASSED, reason="", where="here", checks=(check,)))
    one.write(tmp_path)
    assert SmokeReport.read(tmp_path, AMD64) == one


def test_a_failed_check_is_told_and_the_next_ones_still_run(capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(Tier.BOOT, "native", Log())
    with recorder.check("first"):
        raise AssertionError("it is red")
    with recorder.check("second") as states:
        states("green")
    ended = recorder.report()
    assert (ended.state, ended.reason) == (State.FAILED, "first: it is red")
    assert [check.state for check in ended.checks] == [State.FAILED, State.PASSED]
    assert "✗ first" in capsys.readouterr().err


# The variant airgap


ARCHIVE = f"usr/share/dind-k3s/images/{AIRGAP}-amd64.tar.zst"
SYSTEM_IMAGES = pause.system_images(pause.archive(b"a static program", AMD64))


def _layer(image: Image, data: bytes = SYSTEM_IMAGES) -> tuple[dict[str, bytes | str], Artifact]:
    """The layer on top, and the lock's entry for an archive of these bytes."""
    locked = replace(AIRGAP_LOCK.airgap[0], digest=Digest.of(data))
    manifest = "usr/share/dind-k3s/manifest.json"
    entry = {"component": AIRGAP, "version": locked.version, "sha256": locked.digest.hex, "url": "x", "licence": "x"}
    entries = [*json.loads(image.with_digests()[manifest]), {**entry, "files": {f"/{ARCHIVE}": locked.digest.hex}}]
    return {ARCHIVE: data, manifest: json.dumps(entries).encode()}, locked


def test_system_images_are_the_locked_ones_and_of_the_platform(image: Image) -> None:
    layer, locked = _layer(image)
    ended = image.check(layer, airgap=locked)
    assert ended.state == State.PASSED, ended.reason
    detail = next(check.detail for check in ended.checks if check.name == "system images")
    assert detail.startswith("the locked bytes, 8 images, all for linux/amd64: rancher/klipper-helm:")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (pause.system_images(pause.archive(b"a static program", Platform.ARM64)), "it has images for linux/arm64"),
        (b"no zstd", "it is no archive of docker images: ZstdError"),
        (SYSTEM_IMAGES[:-100], "it is no archive of docker images: EOFError"),
        (zstd.compress(tarred({"x": b""}, {})), "it is no archive of docker images: KeyError: 'manifest.json'"),
        (zstd.compress(tarred({"manifest.json": b"[]"}, {})), "it has no image called pause, only none"),
    ],
)
def test_system_images_that_no_cluster_could_live_on_are_named(data: bytes, sentence: str, image: Image) -> None:
    layer, locked = _layer(image, data)
    ended = image.check(layer, airgap=locked)
    assert ended.state == State.FAILED
    assert sentence in ended.reason


def test_other_system_images_than_the_locked_ones_or_none_are_named(image: Image) -> None:
    layer, locked = _layer(image)
    other = replace(locked, digest=digest("other"))
    reasons = [check.detail for check in image.check(layer, airgap=other).checks if check.state == State.FAILED]
    assert any(f"sha256 {locked.digest.hex}, the lock says {other.digest.hex}" in reason for reason in reasons)
    assert f"/{ARCHIVE} is missing" in image.check({**layer, ARCHIVE: "nowhere"}, airgap=locked).reason


class OtherEngines:
    """Engines of which none is native."""

    always_virtual = False

    def native(self, platform: Platform) -> None:
        return None

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"{name}: nothing else is to be asked for")


def test_a_variant_is_booted_natively_or_not_at_all(tmp_path: Path) -> None:
    made = make(tmp_path, "other", Variant.AIRGAP, lock=AIRGAP_LOCK)
    engines: Any = OtherEngines()
    request = smoke.Request(
        image=made,
        lock=AIRGAP_LOCK,
        dist=tmp_path,
        platforms=[AMD64],
        tiers=[Tier.COMMANDS, Tier.BOOT],
        engines=engines,
        log=Log(quiet=True),
        options=lambda *_: BootOptions(),
    )
    ended = smoke.run(request)
    states = {tier.tier: (tier.state, tier.reason) for tier in ended[0].tiers}
    assert states == {
        Tier.COMMANDS: (State.NOT_RUN, "the programs are the image's, in the same layers"),
        Tier.BOOT: (State.NOT_RUN, "nothing runs linux/amd64 natively here; the layers below boot as the image"),
    }
