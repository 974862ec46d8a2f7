"""No variable and no context leads the clients in here to another engine or cluster; `docker exec --env` still can."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from dind_k3s import clients, configure, k3s, verify
from dind_k3s.plan import Plan

JOB = {"DOCKER_HOST": "tcp://docker:2375", "DOCKER_TLS_VERIFY": "1", "KUBECONFIG": "/builds/it's mine.tmp/config"}


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))


def install(tmp_path: Path, made: Plan) -> Path:
    """Write the script, with clients that print their environment; the folder of its links."""
    folder = tmp_path / "usr/local/bin"
    folder.mkdir(parents=True)
    for name in clients.PROGRAMS:
        (folder / name).write_text('#!/bin/sh\necho "$0 $*"\nenv\n')
        (folder / name).chmod(0o755)
    text = made.files[clients.SCRIPT].replace(clients.FOLDER, str(folder))
    configure.write({clients.SCRIPT: text})
    configure.link(made.links)
    return tmp_path / clients.BEFORE.lstrip("/")


def call(folder: Path, name: str, env: dict[str, str]) -> dict[str, str]:
    done = subprocess.run(
        [folder / name, "a b"], env={"PATH": "/bin", **env}, capture_output=True, text=True, check=True
    )
    first, *lines = done.stdout.splitlines()
    assert first.endswith(f"/usr/local/bin/{name} a b")
    return dict(line.split("=", 1) for line in lines)


def test_the_containers_variables_are_dropped_and_those_of_docker_exec_are_not(tmp_path: Path) -> None:
    made = clients.plan(JOB)
    (messages,) = made.messages
    assert messages.startswith("not used in here: DOCKER_HOST, DOCKER_TLS_VERIFY, KUBECONFIG; docker, kubectl, k3s ask")
    folder = install(tmp_path, made)
    env = call(folder, "kubectl", JOB)
    assert env.keys() & JOB.keys() == {"KUBECONFIG"}
    assert env["KUBECONFIG"] == "/app/k3s/k3s.yaml"
    env = call(folder, "docker", JOB | {"DOCKER_HOST": "tcp://elsewhere:1", "OTHER": "x"})
    assert (env["DOCKER_HOST"], env["OTHER"]) == ("tcp://elsewhere:1", "x")
    assert [*verify.extra_files({f"{clients.BEFORE}/known": ""})] == []


def test_nothing_stands_before_the_clients_without_such_a_variable() -> None:
    quiet = {"KUBECONFIG": "/app/k3s/k3s.yaml", "K3S_CONFIG_FILE": "/run/dind-k3s/k3s/config.yaml", "DOCKER_HOST": ""}
    assert clients.plan(quiet | {"DOCKER_DRIVER": "overlay2", "COMPOSE_PROJECT_NAME": "x"}) == Plan()


def test_a_context_of_the_hosts_own_configuration_is_not_followed(tmp_path: Path) -> None:
    file = tmp_path / "root/.docker/config.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"auths": {}, "currentContext": "desktop-linux"}))
    made = clients.plan({})
    assert "the context desktop-linux" in made.messages[0]
    assert call(install(tmp_path, made), "docker", {})["DOCKER_CONTEXT"] == "default"


def test_a_folder_for_dockers_configuration_counts_where_it_is_there(tmp_path: Path) -> None:
    assert "DOCKER_CONFIG" in clients.plan({"DOCKER_CONFIG": "/builds/.docker"}).messages[0]
    (tmp_path / "builds/.docker").mkdir(parents=True)
    assert clients.plan({"DOCKER_CONFIG": "/builds/.docker"}) == Plan()


def test_our_own_programs_ask_the_socket_and_our_cluster() -> None:
    env = {**JOB, "DOCKER_CONTEXT": "x", "DOCKER_API_VERSION": "1.99", "DOCKER_CONFIG": "/x", "HOME": "/builds"}
    clients.settle(env)
    here = {"DOCKER_HOST": "unix:///run/docker.sock", "KUBECONFIG": "/app/k3s/k3s.yaml", "HOME": "/root"}
    assert env == {**here, "K3S_CONFIG_FILE": "/run/dind-k3s/k3s/config.yaml"}


def test_a_kubeconfig_written_elsewhere_leaves_ours_in_place(tmp_path: Path) -> None:
    ours = tmp_path / "app/k3s/k3s.yaml"
    ours.parent.mkdir(parents=True)
    ours.write_text("of an earlier start\n")
    for args, env in (("", {"K3S_KUBECONFIG_OUTPUT": "/output/k.yaml"}), ("-o /output/k.yaml", {})):
        made = Plan()
        k3s.kubeconfig({"K3S_ARGS": args, **env}, made)
        configure.write(made.files)
        configure.link(made.links)
        assert ours.readlink() == tmp_path / "app/k3s/server/cred/admin.kubeconfig"
    made = Plan()
    k3s.kubeconfig({}, made)
    configure.write(made.files)
    assert not ours.is_symlink()
