"""Real guests with the rehearsed image: kernels, broken images; machines that hang, panic or lose their starter."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException

from pipeline import smoke
from pipeline.core import cache
from pipeline.core.errors import EngineError, SmokeFailed
from pipeline.core.log import Log
from pipeline.core.names import INDEX, MANIFEST, Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import Image, SmokeReport, State, Tier
from pipeline.engine.engine import Engine
from pipeline.engine.engines import Engines
from pipeline.engine.virtual import disks, qemu
from pipeline.engine.virtual import machine as machines
from pipeline.engine.virtual.disks import GUESTS, Content, Guest
from pipeline.inputs import lock
from pipeline.inputs.lock import Lock
from pipeline.oci import layout as layouts
from pipeline.oci.index import descriptor, layout_files
from pipeline.rehearsal import clamp, supplies
from pipeline.smoke import boot, load
from pipeline.smoke.booted import Booted, BootOptions
from pipeline.smoke.record import Recorder

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
HOST = Platform.host() or Platform.AMD64
OTHER = Platform.ARM64 if HOST == Platform.AMD64 else Platform.AMD64


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """Results of the last rehearsal: its image, its lock, and the cache with the lock's files."""

    dist: Path
    lock: Lock
    image: Image
    layout: layouts.Layout
    cache: Path


def read_rehearsed() -> Rehearsed:
    """Read the results from dist/rehearsal/."""
    dist = ROOT / "dist" / "rehearsal"
    image = Image.read(dist)
    return Rehearsed(
        dist=dist,
        lock=lock.parse((dist / "versions.lock.yaml").read_text(encoding="utf-8"), "the rehearsal's lock"),
        image=image,
        layout=layouts.read(dist / "image", image.digest),
        cache=cache.folder(),
    )


@pytest.fixture(scope="session")
def rehearsed(supplied: supplies.Supplies) -> Rehearsed:
    """Rehearse if this checkout has no rehearsed image."""
    if not (ROOT / "dist/rehearsal/image.json").exists():
        command = [sys.executable, "-m", "pipeline", "rehearse"]
        subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=True)
    return read_rehearsed()


def guest(
    rehearsed: Rehearsed,
    console: Path,
    which: Guest = GUESTS["default"],
    platform: Platform = HOST,
    content: Content | None = None,
) -> AbstractContextManager[Engine]:
    """Run a guest; its engine is the context."""
    engines = Engines(
        lock=rehearsed.lock,
        cache=rehearsed.cache,
        log=Log(),
        start=lambda: pytest.fail("a guest alone"),
        guest=which,
    )
    return engines.virtual(platform, content, console)


def image_of(rehearsed: Rehearsed, platform: Platform) -> Content:
    """The rehearsed image on a disk."""
    return Content(
        key=f"test-{rehearsed.image.platforms[platform].digest.hex[:16]}",
        fill=lambda client: load.prepare(client, rehearsed.layout, rehearsed.image, platform, Log()),
    )


def leftovers() -> list[str]:
    """Return the command lines of running qemu-system processes with disks of this cache."""
    top = cache.folder() / disks.FOLDER
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "qemu-system" in text and str(top) in text:
            lines.append(text.replace("\0", " ")[:200])
    return lines


def inside_of(engine: Engine, name: str, script: str) -> str:
    """Return the output of a shell in a privileged container with the guest's network and processes."""
    options: dict[str, Any] = {"privileged": True, "remove": True, "networks": ["host"], "pid": "host"}
    return str(engine.docker.run(name, ["-c", script], entrypoint="sh", **options))


# Does the kernel take a rule by each of its two ways to filter packets?
_LEGACY = "iptables-legacy -w -t nat -L -n >/dev/null 2>&1 && echo works || echo fails"
_NFT = "iptables-nft -w -t nat -L -n >/dev/null 2>&1 && echo works || echo fails"


def test_a_guest_with_cgroup_v1_has_all_its_controllers_and_no_v2(rehearsed: Rehearsed, tmp_path: Path) -> None:
    content = image_of(rehearsed, HOST)
    with guest(rehearsed, tmp_path / "console", GUESTS["cgroup-v1"], content=content) as engine:
        name = load.run(engine.docker, rehearsed.layout, rehearsed.image, HOST, Log()).name
        assert inside_of(engine, name, "stat -f -c %T /sys/fs/cgroup") == "tmpfs"
        listed = inside_of(engine, name, "cat /proc/self/cgroup")
        assert "memory:" in listed
        assert "cpuset:" in listed
        assert "0::" not in listed
    assert leftovers() == []


# By how much the clock is set, what is logged, and whether the cluster can be ready then. One after the other: 26 hours
# ahead, two hours ahead, before the cluster was made, two hours ahead again.
_JUMPS = (
    ("+26 hours", r"forward by 1 day, .* certificates are good for that", True),
    ("-1 day", r"back by .* k3s was restarted, because the tokens that pods have are not valid yet", True),
    ("-3 hours", r"back by .* certificates are not valid before", False),
    ("+3 hours", r"forward by .* certificates are good for that", True),
)
# An image of two programs, made quickly, and a pod of it. Emulated, each client takes seconds to start.
_FIRST = r"""
programs='/bin/cat /bin/sleep'
tar -chf - $programs $(ldd $programs | grep -o '/[^ )]*' | grep -v ':$' | sort -u) 2>/dev/null | docker import - probe:1
"""
_POD = """
kubectl run "$1" --image=probe:1 --image-pull-policy=Never --command -- /bin/sleep 100000
kubectl wait --for=condition=Ready --timeout=600s pods --all
"""
_RUN = '[ "$(docker run --rm probe:1 /bin/cat /proc/1/comm)" = cat ]'
_LOST = """
until healthcheck | grep -q 'certificates are not valid before'; do sleep 0.2; done
if wait-ready --for k8s --timeout 0; then exit 9; fi
"""


def test_nft_only_and_a_clock_that_is_set(rehearsed: Rehearsed, tmp_path: Path) -> None:
    """A machine has one clock, so a container's can be set only in a separate machine."""
    content = image_of(rehearsed, HOST)
    with guest(rehearsed, tmp_path / "console", GUESTS["nft-only"], content=content) as engine:
        loaded = load.run(engine.docker, rehearsed.layout, rehearsed.image, HOST, Log())
        assert [inside_of(engine, loaded.name, script) for script in (_NFT, _LEGACY)] == ["works", "fails"]
        box = Booted(engine, loaded, BootOptions(), Log(), tmp_path / "boot.log")
        try:
            box.start()
            box.do("wait-ready", "--timeout", "600", limit=120)
            box.do("sh", "-ec", _FIRST + _POD, "sh", "first", limit=120)
            for number, jump in enumerate(_JUMPS, 1):
                set_clock(box, number, *jump)
            box.until("docker to call it healthy", lambda: "healthy" if is_healthy(box) else None, 60)
            log = str(box.client.logs(box.name))
            assert "ended by itself" not in log
            # Only k3s was started again, once.
            starts = (r"^\[dockerd\] .*Starting up", r"^\[watch\] docker is ready after", r"^\[k3s\] .*a stub for")
            assert [len(re.findall(start, log, re.MULTILINE)) for start in starts] == [1, 1, 2]
        finally:
            box.clean_up(failed=False)
    assert leftovers() == []


def is_healthy(box: Booted) -> bool:
    health = box.client.container.inspect(box.name).state.health
    return health is not None and health.status == "healthy"


def set_clock(box: Booted, number: int, by: str, logged: str, ready: bool) -> None:
    """Set the clock of the box's machine, and check what the box does."""

    def jumps() -> list[str]:
        return re.findall(r"^\[watch\] (the clock was set .*)$", str(box.client.logs(box.name)), re.MULTILINE)

    began = time.monotonic()
    box.do("date", f"--set={by}")
    box.until("the jump to be logged", lambda: "it is" if len(jumps()) >= number else None, 30)
    took = time.monotonic() - began
    if ready:
        check = f"wait-ready --timeout 600\n{_RUN}\nhealthcheck\n{_POD}"
    else:
        check = f"{_LOST}\nwait-ready --for docker\n{_RUN}\ndocker ps | grep first"
    box.do("bash", "-euc", check, "bash", f"after-{number}", limit=120)
    print(f"{by}: logged after {took:.1f} s, checked after {time.monotonic() - began:.1f} s: {jumps()[-1]}")
    assert re.search(logged, jumps()[-1])
    assert len(jumps()) == number


def test_a_panic_is_reported_with_the_last_lines(rehearsed: Rehearsed, tmp_path: Path) -> None:
    def panic() -> None:
        with guest(rehearsed, tmp_path / "console", content=image_of(rehearsed, HOST)) as engine:
            name = load.run(engine.docker, rehearsed.layout, rehearsed.image, HOST, Log()).name
            with pytest.raises(DockerException):
                inside_of(engine, name, "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger")
            deadline = time.monotonic() + 10
            while (trouble := engine.trouble()) is None:
                assert time.monotonic() < deadline
            assert "it ended in stage ready" in trouble

    with pytest.raises(EngineError, match=f"the virtual engine for {HOST} failed") as failed:
        panic()
    assert "Kernel panic" in (failed.value.found or "")
    assert failed.value.exit_code == 11
    assert leftovers() == []


def test_a_guest_that_hangs_is_killed(rehearsed: Rehearsed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_SILENCE", 12.0)

    def hang() -> None:
        with guest(rehearsed, tmp_path / "console") as engine:
            freeze(rehearsed)
            with pytest.raises(DockerException):  # it ends when the machine is ended, and not before
                engine.docker.container.list()
            assert "it hung in stage ready: no heartbeat for 12 s" in (engine.trouble() or "")

    with pytest.raises(EngineError) as failed:
        hang()
    assert "ready" in (failed.value.found or "")
    assert leftovers() == []


def test_a_guest_that_hangs_early_is_booted_again(
    rehearsed: Rehearsed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(machines._LIMITS, "kernel", 0.3)  # under TCG none has mounted its root by then
    emulated = qemu.accelerators(HOST)[-1:]
    monkeypatch.setattr(qemu, "accelerators", lambda _platform: emulated)
    with pytest.raises(machines.Hung, match="the virtual engine for") as failed, guest(rehearsed, tmp_path / "console"):
        pytest.fail("it booted in no time")
    assert "it hung in stage kernel: no progress within 0.3 s" in (failed.value.found or "")
    log = capsys.readouterr().err
    assert log.count("; tcg, ") == 2 * 2, "two machines, each with a line at its start and at its end"
    assert log.count("booting the guest again: it hung in stage kernel") == 1
    assert leftovers() == []


def freeze(rehearsed: Rehearsed) -> None:
    """Stop the processors of the one guest, through qemu's monitor."""
    (monitor,) = (rehearsed.cache / disks.FOLDER).glob("run-*/qmp")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(monitor))
        with connection.makefile("rw") as stream:
            stream.readline()
            for execute in ("qmp_capabilities", "stop"):
                stream.write(json.dumps({"execute": execute}) + "\n")
                stream.flush()
                stream.readline()


def test_a_guest_without_its_root_is_an_error(
    rehearsed: Rehearsed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    with empty.open("wb") as stream:
        stream.truncate(1 << 20)
    made = disks.system
    monkeypatch.setattr(disks, "system", lambda *arguments: replace(made(*arguments), root=empty))
    with pytest.raises(EngineError) as failed, guest(rehearsed, tmp_path / "console"):
        pytest.fail("it booted from nothing")
    assert "it ended in stage kernel" in (failed.value.found or "")
    assert "failed before its root was mounted: mount /dev/vda" in (failed.value.found or "")
    assert "booting the guest again" not in capsys.readouterr().err, "only one that hung"
    assert leftovers() == []


_STARTER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.engine.test_virtual import guest, read_rehearsed
with guest(read_rehearsed(), Path({console!r})) as engine:
    print(engine.host.rpartition(":")[2], flush=True)
    time.sleep(600)
"""


def answers(port: int) -> bool:
    """Whether a process listens on a port of 127.0.0.1."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def test_a_guest_dies_with_its_starter(rehearsed: Rehearsed, tmp_path: Path) -> None:
    script = _STARTER.format(root=str(ROOT), console=str(tmp_path / "console"))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert len(leftovers()) == 1
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while leftovers():
        assert time.monotonic() < deadline, leftovers()
        time.sleep(0.05)
    while answers(port):
        assert time.monotonic() < deadline
    folder = qemu.Folder.make(rehearsed.cache / disks.FOLDER)
    assert list((rehearsed.cache / disks.FOLDER).glob("run-*")) == [folder.path]
    os.close(folder.lock)
    shutil.rmtree(folder.path)


# Changes of the image on the other platform: path → content (None: removed), and the reasons that smoke must report.
_BROKEN: Mapping[str, tuple[Mapping[str, bytes | None], Mapping[Tier, str]]] = {
    "k3s of another architecture": (
        {"usr/local/bin/k3s": b"ELF"},  # replaced below by a real program of this machine's platform
        {
            Tier.FILES: r"/usr/local/bin/k3s is for ",
            Tier.BOOT: r"k3s.*(Exec format error|cannot execute)",
        },
    ),
    "no iptables": (
        {"usr/sbin/xtables-nft-multi": None, "usr/sbin/xtables-legacy-multi": None},
        {Tier.BOOT: r"iptables"},
    ),
    "dockerd cut off": (
        {"usr/local/bin/dockerd": b"CUT"},
        {Tier.FILES: r"/usr/local/bin/dockerd is truncated", Tier.BOOT: r"dockerd"},
    ),
    "an entrypoint that ends": (
        {"usr/local/sbin/dind-k3s-entrypoint": b"#!/bin/sh\necho 'no reason to stay' >&2\nexit 7\n"},
        {
            Tier.FILES: r"dind-k3s-entrypoint is not what /usr/share/dind-k3s/manifest.json says",
            Tier.BOOT: r"the container has ended: .*no reason to stay",
        },
    ),
}


class Variant:
    """The rehearsed image with an additional layer on the other platform, in a separate dist/."""

    def __init__(self, rehearsed: Rehearsed, dist: Path, files: Mapping[str, bytes | None]) -> None:
        self.dist = dist
        self._blobs = dist / "image" / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)
        for part in rehearsed.layout:
            (self._blobs / part.digest.hex).hardlink_to(part.path)
        built = rehearsed.image.platforms[OTHER]
        manifest = self._read(built.digest)
        config = self._read(built.config)
        archive = self._archive(files)
        layer = self._put(gzip.compress(archive, 1, mtime=0), manifest["layers"][-1]["mediaType"])
        config["rootfs"]["diff_ids"].append(Digest.of(archive).text)
        config.get("history", []).append({"created_by": "a test"})
        described = self._put(json.dumps(config).encode(), manifest["config"]["mediaType"])
        manifest |= {"config": described, "layers": [*manifest["layers"], layer]}
        at = {"os": "linux", "architecture": OTHER.architecture}
        entry = self._put(json.dumps(manifest).encode(), MANIFEST, platform=at)
        digest = Digest(self._put(layout_files(entry)["index.json"], INDEX)["digest"])
        changed = replace(built, digest=Digest(entry["digest"]), config=Digest(described["digest"]))
        self.image = replace(rehearsed.image, digest=digest, platforms={OTHER: changed})
        self.image.write(dist)
        self.layout = layouts.read(dist / "image", digest)

    def _read(self, digest: Digest) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self._blobs / digest.hex).read_bytes())
        return content

    def _put(self, data: bytes, media_type: str, **more: object) -> dict[str, Any]:
        digest = Digest.of(data)
        path = self._blobs / digest.hex
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        return descriptor(media_type, digest, len(data), **more)

    def _archive(self, files: Mapping[str, bytes | None]) -> bytes:
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as archive:
            for path, data in files.items():
                folder, _, name = path.rpartition("/")
                member = tarfile.TarInfo(path if data is not None else f"{folder}/.wh.{name}")
                member.mode, member.size = 0o755, len(data or b"")
                archive.addfile(member, io.BytesIO(data or b""))
        return raw.getvalue()


class Given(Engines):
    """Engines with one running virtual engine for every image."""

    def native(self, platform: Platform) -> Engine | None:
        return None

    @contextmanager
    def virtual(self, platform: Platform, content: Content | None, console: Path) -> Iterator[Engine]:
        yield self.start()

    def why_not_virtual(self, platform: Platform) -> str | None:
        return None


def program(rehearsed: Rehearsed, platform: Platform, component: str) -> bytes:
    """Return a locked single-file component, or dockerd of docker's archive."""
    file = next(file for file in rehearsed.lock.artifacts if (file.component, file.platform) == (component, platform))
    path = cache.require(rehearsed.cache, file.digest)
    if component != "docker":
        return path.read_bytes()
    with tarfile.open(path) as archive:
        stream = archive.extractfile("docker/dockerd")
        assert stream is not None
        return stream.read()


def test_broken_images_of_the_other_platform_fail_smoke(
    rehearsed: Rehearsed, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    bytes_of = {
        b"ELF": lambda: program(rehearsed, HOST, "kubectl"),
        b"CUT": lambda: program(rehearsed, OTHER, "docker")[:3_000_000],
    }
    # On the cache's file system, so that the blobs are hard links.
    folder = rehearsed.dist / "tests"
    shutil.rmtree(folder, ignore_errors=True)
    variants = {}
    for number, (name, (files, _)) in enumerate(_BROKEN.items()):
        real = {path: bytes_of[data]() if data in bytes_of else data for path, data in files.items()}
        variants[name] = Variant(rehearsed, folder / str(number), real)

    def fill(client: DockerClient) -> None:
        for variant in variants.values():
            load.prepare(client, variant.layout, variant.image, OTHER, Log())

    key = Digest.of("".join(variant.image.digest.text for variant in variants.values()).encode()).hex[:16]
    content = Content(key=f"broken-{key}", fill=fill)
    try:
        with guest(rehearsed, tmp_path / "console", platform=OTHER, content=content) as engine:
            for name, variant in variants.items():
                with subtests.test(msg=name):
                    _fails(rehearsed, variant, engine, _BROKEN[name][1])
            assert engine.docker.container.list(all=True) == []
            assert engine.docker.volume.list() == []
    finally:
        shutil.rmtree(folder)
    assert leftovers() == []


def _fails(rehearsed: Rehearsed, variant: Variant, engine: Engine, reasons: Mapping[Tier, str]) -> None:
    request = smoke.Request(
        image=variant.image,
        lock=rehearsed.lock,
        dist=variant.dist,
        platforms=[OTHER],
        tiers=[Tier.FILES, Tier.BOOT],
        engines=Given(lock=rehearsed.lock, cache=rehearsed.cache, log=Log(), start=lambda: engine),
        log=Log(),
        options=lambda *_: BootOptions(),
    )
    with pytest.raises(SmokeFailed) as failed:
        smoke.run(request)
    assert failed.value.exit_code == 8
    report = SmokeReport.read(variant.dist, OTHER)
    for tier in report.tiers:
        if tier.tier in reasons:
            assert tier.state == State.FAILED, tier
            assert re.search(reasons[tier.tier], tier.reason), tier.reason
        else:
            assert tier.state == State.PASSED, tier


def test_the_whole_tier_runs_with_what_k3s_gets_on_a_slow_engine(
    rehearsed: Rehearsed, engine: DockerClient, tmp_path: Path
) -> None:
    """The stub takes the arguments of k3s, and it is quick."""
    called_slow = Engine(docker=engine, builder=None, description="the tests' own", platform=HOST, patience=5.0)
    recorder = Recorder(Tier.BOOT, "native", Log())
    loaded = load.run(engine, rehearsed.layout, rehearsed.image, HOST, Log())
    options = clamp.apply(BootOptions(), tmp_path, Log(quiet=True))
    boot.run(called_slow, loaded, rehearsed.lock, options, recorder, tmp_path / "boot.log")
    report = recorder.report()
    assert report.state == State.PASSED, report.reason
    assert report.steps == {"docker": State.PASSED, "control plane": State.PASSED, "node and pods": State.PASSED}
    assert not [check for check in report.checks if check.state == State.NOT_RUN]
    engine.image.remove(loaded.name, force=True)
    assert engine.volume.list() == []
