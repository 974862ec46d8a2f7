"""Without a network: in a namespace that only has loopback, as root on Linux."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core import machine
from pipeline.core.log import Log
from pipeline.core.machine import find
from pipeline.core.names import Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import Image
from pipeline.engine import sandbox
from pipeline.http import transport
from pipeline.inputs import changes, lock, versions
from pipeline.rehearsal import images, origin, supplies
from pipeline.rehearsal import registry as rehearsed_registry
from pipeline.rehearsal.registry import free_ports
from pipeline.workflow import Run
from tests.helpers.images import program
from tests.helpers.sites import Site

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or find("unshare") is None, reason="needs Linux, root and unshare"
)

# `build` up to the call of buildx; prints JSON.
_PREPARE = """
import json, socket, sys
from pathlib import Path
from pipeline import __main__ as cli
from pipeline.build import context
from pipeline.core.log import Log
from pipeline.workflow import Run

*arguments, dist, cache = sys.argv[1:]
assert [name for _, name in socket.if_nameindex() if name != "lo"] == [], socket.if_nameindex()
code = cli.main([*arguments, "fetch", "--offline"])
if code:
    sys.exit(code)
parsed = cli.parser().parse_args([*arguments, "plan"])
run = Run(
    root=cli.ROOT, intent_path=parsed.versions, lock_path=parsed.lock, dist=Path(dist), cache=Path(cache), log=Log()
)
run.plan()
made = run.job.context
context.prepare(run.intent, run.lock, run.cache, made, run.log)
print(json.dumps(sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())))
"""


def alone(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command without a network."""
    return subprocess.run(
        sandbox.wrap(command), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def prepared(site: Site) -> subprocess.CompletedProcess[str]:
    return alone([sys.executable, "-c", _PREPARE, *site.arguments, str(site.folder / "dist"), str(site.cache)])


def test_the_namespace_has_no_network() -> None:
    done = alone([sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 80), 5)"])
    assert done.returncode != 0
    assert "Network is unreachable" in done.stderr


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with closing(Site(tmp_path)) as site:
        yield site


def test_fetch_offline_and_the_build_context_need_no_network(site: Site) -> None:
    done = prepared(site)
    assert done.returncode == 0, done.stderr
    assert f"nothing to download: {len(site.lock.all_files)} files" in done.stderr
    listed = json.loads(done.stdout)
    for platform in Platform:
        folder = f"artifacts/{platform.architecture}"
        for name in ("docker.tgz", "buildx", "compose", "k3s", "kubectl", "manifest.json"):
            assert f"{folder}/{name}" in listed
        assert any(name.startswith(f"{folder}/packages/iptables_") for name in listed)
    assert f"base/blobs/sha256/{site.base.hex}" in listed


@pytest.mark.parametrize("lost", [b"k3s for linux/arm64", b"layer for linux/amd64"])
def test_a_missing_file_is_reported_with_the_command_that_downloads_it(site: Site, lost: bytes) -> None:
    (site.cache / "sha256" / Digest.of(lost).hex).unlink()
    done = prepared(site)
    assert done.returncode == 3
    assert Digest.of(lost).text in done.stderr
    assert "next step: nox -s fetch" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def filled(supplied: supplies.Supplies) -> Iterator[Run]:
    """A run whose cache was filled from the rehearsal's origin and a registry, which are stopped."""
    folder = Path(tempfile.mkdtemp(prefix="dk-"))  # short, for the engine's socket
    committed = versions.read(ROOT / "versions.yaml")
    client = transport.make_client()
    run = Run(
        root=ROOT,
        intent_path=folder / "versions.yaml",
        lock_path=folder / "versions.lock.yaml",
        dist=folder / "dist",
        cache=folder / "cache",
        log=Log(),
        client=client,
        credentials=lambda registry: None,
        rehearsed=True,
    )
    port, registry_port = free_ports(), free_ports()
    try:
        with (
            origin.serve(supplied.root, port),
            rehearsed_registry.serve(program(), folder / "registry", registry_port) as served,
        ):
            name = ImageName(registry=served.host, repository="library/debian")
            tag = committed.base.rpartition(":")[2]
            pushing = replace(run, credentials=lambda registry: served.credentials).registry(name)
            images.push_base(pushing, tag, supplied.bases, folder / "base-image", run.log)
            versions.write(
                run.intent_path,
                replace(
                    committed,
                    names=(ImageName(registry=served.host, repository="dind-k3s"),),
                    components=supplied.versions,
                    upstream=origin.upstream(port),
                    base=f"{name}:{tag}",
                ),
            )
            text = run.update()
            assert "## A new lock" in text
            before = run.lock_path.read_bytes()
            assert run.update() == changes.NOTHING
            assert run.lock_path.read_bytes() == before
        yield run
    finally:
        client.close()
        shutil.rmtree(folder)


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_the_whole_build_needs_no_network(filled: Run) -> None:
    """Fetch, and build both platforms with a private engine, without a network."""
    inside = filled.lock.embedded
    assert {"containerd", "docker-cli", "docker-init", "go", "runc"} <= inside["docker"].keys()
    assert inside["kubectl"].keys() == {"go"}
    assert "k3s" not in inside  # a stub is not a Go program
    machine.ensure([*sandbox.TOOLS, "slirp4netns"], filled.log)
    done = alone(
        [
            *(sys.executable, "-m", "pipeline", "--versions", str(filled.intent_path)),
            *("--lock", str(filled.lock_path), "--dist", str(filled.dist), "--cache", str(filled.cache)),
            *("build", "--offline"),
        ]
    )
    assert done.returncode == 0, done.stderr[-4000:]
    image = Image.read(filled.dist)
    assert set(image.platforms) == set(Platform)
    assert image.lock == lock.read(filled.lock_path, filled.intent).digest
