"""docs/recipes.md and docs/quickstart.md, run as they stand there.

From a container in the place of the host, with docker and kubectl.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException

from pipeline.core import machine
from pipeline.rehearsal import clamp
from tests.image.box import CONTEXT, Image

pytestmark = pytest.mark.engine

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAME = "ghcr.io/dind-k3s/dind-k3s"
POD_IS_DONE = "built inside"


@dataclass(frozen=True)
class Host:
    """A machine with an engine: a container in the engine's own network, with its socket."""

    engine: DockerClient
    name: str
    folder: Path  # the working directory, under the same path for the engine

    def run(self, script: str, **environment: str) -> str:
        """What a shell writes; AssertionError when it fails."""
        try:
            command = ["bash", "-eo", "pipefail", "-c", script]
            return str(self.engine.execute(self.name, command, envs=environment)).strip()
        except DockerException as error:
            raise AssertionError(f"{script}\n{error.return_code}: {error.stdout} {error.stderr}") from None


@pytest.fixture(scope="module")
def host(image: Image) -> Iterator[Host]:
    """The host. The published name leads to the image under test."""
    folder = Path(tempfile.mkdtemp(prefix="dind-k3s-host-"))
    engine = image.engine
    socket = str(engine.client_config.host).removeprefix("unix://")
    try:
        (folder / "docs").mkdir()
        shutil.copytree(DOCS / "recipes", folder / "docs/recipes")
        engine.buildx.build(published(image, folder), tags=[NAME], load=True, progress=False)
        started = engine.run(
            NAME,
            ["sleep", "3600"],
            detach=True,
            remove=True,
            networks=["host"],
            envs={"DOCKER_HOST": "unix:///run/outer.sock", "RUNNER_TEMP": "/tmp", "GITHUB_ENV": "/tmp/env"},
            volumes=[(socket, "/run/outer.sock"), (folder, folder)],
            workdir=folder,
        )
        yield Host(engine=engine, name=started.name, folder=folder)
    finally:
        with suppress(DockerException, NameError, UnboundLocalError):
            engine.kill(started)
        shutil.rmtree(folder)


def published(image: Image, folder: Path) -> Path:
    """A build context: the image under test, with what this machine needs (pipeline/rehearsal/clamp.py)."""
    context = folder / "image"
    context.mkdir()
    lines = [f"FROM {image.name}"]
    if not machine.has_capability(machine.CAP_SYS_RESOURCE):
        (context / "runtime").write_text(clamp.RUNTIME)
        (context / "runtime").chmod(0o755)
        lines += [f"COPY runtime {clamp.INSIDE}", f'ENV DOCKER_ARGS="{clamp.ARGUMENTS}"']
    (context / "Dockerfile").write_text("\n".join(lines) + "\n")
    return context


def recipe(test: str) -> str:
    """The shell lines below the title that names the test."""
    sections = (DOCS / "recipes.md").read_text().split("\n## ")
    (section,) = (section for section in sections if f"(`{test}`)" in section.partition("\n")[0])
    found = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def tidy(host: Host) -> Iterator[Host]:
    """Removes what the recipe made: every container but the host, and the volumes."""
    try:
        yield host
    finally:
        for container in host.engine.container.list(all=True):
            if container.name != host.name:
                host.engine.remove(container, force=True, volumes=True)
        for volume in host.engine.volume.list():
            with suppress(DockerException):
                volume.remove()


def context(host: Host, folder: str) -> None:
    """A build context of the host's own files in a folder of the working directory."""
    host.run(
        f"bash -c {shlex.quote(CONTEXT)} - {shlex.quote(POD_IS_DONE)}; mkdir -p {folder}; cp -R /tmp/probe/. {folder}"
    )


def test_every_recipe_names_its_test() -> None:
    named = set(re.findall(r"^## .*\(`(\w+)`\)$", (DOCS / "recipes.md").read_text(), re.MULTILINE))
    others = {"test_every_recipe_names_its_test", "test_quickstart"}
    assert named == {name for name in globals() if name.startswith("test_")} - others


def test_compose(tidy: Host) -> None:
    try:
        written = tidy.run(recipe("test_compose"))
    finally:
        tidy.run("docker compose --file docs/recipes/compose.yaml down --timeout 10")
    assert "node/local-node condition met" in written
    assert re.search(r"^local-node +Ready", written, re.MULTILINE)


def test_gitlab(tidy: Host) -> None:
    """As the runner's docker executor does it: service, wait for the exposed port, job."""
    job: dict[str, Any] = yaml.safe_load((DOCS / "recipes/gitlab-ci.yml").read_text())["build-and-run"]
    (service,) = job["services"]
    context(tidy, "project")
    network = tidy.engine.network.create("job")
    try:
        shared: dict[str, Any] = {"envs": job["variables"], "networks": [network], "volumes": [("builds", "/builds")]}
        tidy.engine.run(
            service["name"],
            service["command"],
            detach=True,
            privileged=True,
            network_aliases=[service["alias"]],
            **shared,
        )
        probe = (
            f"for _ in {{1..600}}; do (</dev/tcp/{service['alias']}/6443) 2>/dev/null && exit; sleep 0.1; done; exit 1"
        )
        tidy.engine.run(NAME, ["bash", "-c", probe], networks=[network], remove=True)
        project = [(tidy.folder / "project", "/builds/project")]
        shared["volumes"] = shared["volumes"] + project
        script = "set -eo pipefail; " + "\n".join(job["script"])
        written = tidy.engine.run(
            job["image"], ["bash", "-c", script], workdir="/builds/project", remove=True, **shared
        )
    finally:
        for container in tidy.engine.container.list(all=True, filters=[("network", "job")]):
            tidy.engine.remove(container, force=True, volumes=True)
        network.remove()
    assert str(written).strip().endswith(POD_IS_DONE)


def test_github(tidy: Host) -> None:
    """The steps of the job, one after the other, with the environment that they hand on."""
    steps = yaml.safe_load((DOCS / "recipes/github-actions.yml").read_text())["jobs"]["test"]["steps"]
    context(tidy, "checkout")
    written = ""
    for step in steps:
        after = "set -a; touch /tmp/env; . /tmp/env; set +a; cd checkout\n"
        written = tidy.run(after + step["run"])
        if step["name"].startswith("Build"):
            assert written.endswith(POD_IS_DONE)
    assert tidy.run("tar -tzf /tmp/logs.tar.gz | grep -c dind-k3s/files/app/logs/") != "0"


def test_testcontainers(tidy: Host) -> None:
    """Nothing but the engine's API: health, log, port, a copied file."""
    made = tidy.engine.run(NAME, detach=True, privileged=True, publish_all=True)
    port = (made.network_settings.ports or {})["6443/tcp"][0]["HostPort"]
    ask = f"""
until docker inspect --format '{{{{.State.Health.Status}}}}' {made.name} | grep -q '^healthy$'; do sleep 0.2; done
docker logs {made.name} 2>&1 | grep -q 'k8s is ready'
(</dev/tcp/127.0.0.1/{port})
docker cp {made.name}:/app/k3s/k3s.yaml - | tar -xO | sed 's/127.0.0.1:6443/localhost:{port}/' >/tmp/kubeconfig
kubectl --kubeconfig /tmp/kubeconfig get nodes --output name
"""
    assert tidy.run(f"timeout 60 bash -ec {shlex.quote(ask)}") == "node/local-node"


def test_published(tidy: Host) -> None:
    written = tidy.run(recipe("test_published"))
    assert re.search(r"^local-node +Ready", written, re.MULTILINE)
    context(tidy, "inner")
    serve = "socat TCP-LISTEN:80,fork,reuseaddr SYSTEM:'/bin/cat /word'"
    tidy.run(
        "tar --create --directory inner . | docker exec --interactive web docker build --quiet --tag mine:1 -"
        f"; docker exec web docker run --detach --publish 30080:80 mine:1 {serve}"
    )
    asking = "for _ in {1..50}; do cat </dev/tcp/127.0.0.1/30080 2>/dev/null | grep . && exit; sleep 0.1; done; exit 1"
    assert tidy.run(asking) == POD_IS_DONE


def test_edge(tidy: Host) -> None:
    context(tidy, "context")
    tidy.run("docker build --quiet --tag mine:1 context; mkdir images; docker save mine:1 >images/mine.tar")
    tidy.run(recipe("test_edge"))
    assert tidy.run("docker exec edge kubectl logs mine") == POD_IS_DONE


def test_quickstart(tidy: Host) -> None:
    """Every command of the page, in its order. What it builds on is made here, under the name that is pulled."""
    page = (DOCS / "quickstart.md").read_text()
    run, build, kubeconfig, stop, away = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    tidy.run("mkdir quickstart")
    here = "cd quickstart\n"
    assert re.search(r"^local-node +Ready", tidy.run(here + run), re.MULTILINE)
    context(tidy, "busybox")
    tidy.run("tar --create --directory busybox . | docker exec --interactive dev docker build --quiet --tag busybox -")
    assert tidy.run(here + build).endswith("built inside")
    assert re.search(r"^hello +1/1 +Running", tidy.run(here + kubeconfig), re.MULTILINE)
    assert tidy.run(here + stop).endswith("pod/hello condition met")
    tidy.run(here + away)
    assert tidy.run("docker ps --all --quiet --filter name=^dev$; docker volume ls --quiet --filter name=^k3s$") == ""
