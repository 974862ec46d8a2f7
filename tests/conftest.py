"""What all tests share: no accidental network or docker, a real engine for those that ask, no skips in CI."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from hypothesis import Phase, settings
from python_on_whales import DockerClient

from pipeline.core import cache, machine
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.engine import daemon, sandbox
from pipeline.engine.virtual.disks import GUESTS
from pipeline.http import retries, transport
from pipeline.inputs import lock, versions
from pipeline.rehearsal import origin, rehearse, supplies
from pipeline.resolve import resolve
from tests.helpers.cosigns import Cosign, bring
from tests.helpers.examples import LOCK, artifact
from tests.helpers.vendors import BASE, Vendors

ROOT = Path(__file__).resolve().parent.parent

# pytest --hypothesis-profile=thorough: minutes where the default takes seconds. CI keeps hypothesis's own profile.
settings.register_profile("thorough", max_examples=10_000, deadline=None, phases=set(Phase) - {Phase.explain})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Our own flags."""
    parser.addoption("--update-golden", action="store_true", help="write the golden files again")
    parser.addoption("--k3s", type=Path, help="tests/image: a real k3s for this machine, in the stub's place")
    parser.addoption("--images", type=Path, help="tests/image: that k3s's archive of system images (tar.zst)")
    parser.addoption("--earlier", type=Path, help="tests/image: the real k3s of one minor before, to upgrade from")
    parser.addoption("--release", type=Path, help="tests/image: a built image (dist), with the lock's own k3s")
    parser.addoption("--guest", choices=[*GUESTS], help="tests/image: in a small machine under qemu, e.g. default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only the other k3s can show: `real_k3s` without --k3s or --release, `stub_k3s` with it."""
    away = ["stub_k3s" if config.getoption("--k3s") or config.getoption("--release") else "real_k3s"]
    away += [] if config.getoption("--earlier") else ["earlier_k3s"]
    left_out = [item for item in items if any(map(item.get_closest_marker, away))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    if config.getoption("--guest"):  # its speed is in every deadline of these tests, and cannot be in this one
        for item in items:
            item.add_marker(pytest.mark.timeout(0), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skip is a failure: CI promises every test."""
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, which promises this test: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _loopback_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches out by accident fails with a message that names it; one with the marker `contract` may."""
    if request.node.get_closest_marker("contract"):
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = address[0] if isinstance(address, tuple) else ""
            assert str(host).startswith("127.") or host in ("::1", "localhost"), f"a test tried to reach {address}"
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _no_docker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test without the marker `engine` meets no docker daemon."""
    if request.node.get_closest_marker("engine") is None:
        monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """The pipeline's HTTP client."""
    with transport.make_client() as client:
        yield client


@pytest.fixture
def vendors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendors]:
    """A network of vendors, each with a release that is complete; apt and the base image are handed in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(resolve.System, "base", lambda _: BASE)
    monkeypatch.setattr(resolve.System, "packages", lambda *_: ((artifact("iptables", Platform.AMD64),), ()))
    monkeypatch.setattr(retries, "PAUSES", ())
    made = Vendors(cache=tmp_path)
    made.log = Log()
    made.complete()
    yield made
    made.client.close()


@pytest.fixture(scope="session")
def supplied(request: pytest.FixtureRequest) -> supplies.Supplies:
    """The rehearsal's supplies, which hold a real engine; downloaded now if no rehearsal ran on this machine yet."""
    _need_root()
    capture = request.config.pluginmanager.getplugin("capturemanager")
    log = Log()
    intent = versions.read(ROOT / "versions.yaml")
    with capture.global_and_fixture_disabled():
        machine.ensure([*rehearse.TOOLS, *sandbox.TOOLS], log)
        committed = lock.read(ROOT / "versions.lock.yaml", intent)
        job = supplies.Job(intent=intent, lock=committed, folder=cache.folder() / "rehearsal", log=log)
        return supplies.provide(job)


def _need_root() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a private engine needs Linux and root")


@pytest.fixture(scope="session")
def cosigns(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Cosign]:
    """cosign 2 and 3, by major version."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        found = bring(Log())
    return {major: Cosign(path, tmp_path_factory.mktemp("cosign")) for major, path in found.items()}


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Iterator[DockerClient]:
    """A real engine in a separate sandbox, with nothing in it: of the rehearsal's docker, else of the lock's."""
    folder = Path(tempfile.mkdtemp(prefix="dind-k3s-tests-"))  # short: a socket's path may have 107 characters
    if request.config.getoption("--release"):
        _need_root()
        machine.ensure([*sandbox.TOOLS, "dpkg-deb"], Log())
        committed = lock.read(ROOT / "versions.lock.yaml", versions.read(ROOT / "versions.yaml"))
        binaries = daemon.unpack(committed, cache.folder())
    else:
        binaries = _rehearsed(request.getfixturevalue("supplied"), folder)
    try:
        with daemon.run(binaries, folder, Log(quiet=True), sandboxed=True, network=False) as client:
            yield client
    finally:
        shutil.rmtree(folder)


def _rehearsed(supplied: supplies.Supplies, folder: Path) -> daemon.Binaries:
    host = Platform.host()
    assert host is not None
    (folder / "sha256").mkdir()
    files = []
    for name in ("docker", "buildx"):
        path = origin.path_of(supplied.root, name, supplied.versions[name], host)
        locked = next(file for file in LOCK.artifacts if (file.component, file.platform) == (name, host))
        files.append(replace(locked, digest=Digest.of_file(path)))
        cache.link(path, cache.path_of(folder, files[-1].digest))
    return daemon.unpack(replace(LOCK, artifacts=tuple(files)), folder)


@pytest.fixture(scope="session")
def busybox(engine: DockerClient) -> str:
    """The name of an image with a shell and nothing else, made of this machine's own files."""
    name = "probe:1"
    folder = Path(tempfile.mkdtemp())
    programs = [Path(found) for found in map(shutil.which, ("sh", "cat", "sleep", "env")) if found]
    for program in programs:
        _with_libraries(program.resolve(), folder, f"bin/{program.name}")
    engine.import_(_packed(folder), name)
    shutil.rmtree(folder)
    return name


def _with_libraries(program: Path, root: Path, name: str) -> None:
    import re
    import subprocess

    listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"(/\S+)", listed):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library, target)
        target.chmod(0o755)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(program, root / name)
    (root / name).chmod(0o755)


def _packed(folder: Path) -> Path:
    import tarfile

    archive = folder / "root.tar"
    with tarfile.open(archive, "w") as tar:
        for entry in sorted(folder.iterdir()):
            if entry != archive:
                tar.add(entry, entry.name)
    return archive
