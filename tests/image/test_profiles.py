"""Profiles and what the container may use, as the cluster sees them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.rehearsal import stub_k3s_build
from tests.image.box import Box

pytestmark = pytest.mark.engine


def in_force(box: Box) -> dict[str, Any]:
    """kubelet's configuration, as it tells it itself."""
    read: dict[str, Any] = json.loads(box.kubectl("get", "--raw", "/api/v1/nodes/local-node/proxy/configz"))
    return dict(read["kubeletconfig"])


def test_dev_keeps_images_and_has_traefik_on_the_published_ports(running: Box) -> None:
    running.ready("all")
    assert in_force(running)["imageGCHighThresholdPercent"] == 100
    config = running.kubectl("get", "helmchartconfig", "traefik", "-n", "kube-system", "-o", "jsonpath={.spec}")
    assert "hostPort: 443" in config
    assert "type: ClusterIP" in config


def test_edge_cleans_up_and_the_node_offers_what_the_container_has(boxes: Callable[..., Box]) -> None:
    box = boxes(environment={"PROFILE": "edge", "K3S_TRAEFIK": "0"}, options={"memory": "3g", "cpus": 1})
    box.up("all")
    assert in_force(box)["imageGCHighThresholdPercent"] == 85
    offered = json.loads(box.kubectl("get", "node", "local-node", "-o", "jsonpath={.status.allocatable}"))
    assert offered["cpu"] == "1000m"
    assert abs(int(offered["memory"].removesuffix("Ki")) - 3 * 1024 * 1024) <= 1024
    assert "not this container's" in box.log()
    assert box.do("docker", "info", "--format", "{{.LoggingDriver}}") == "json-file"
    assert "max-size" in box.do("cat", "/run/dind-k3s/daemon.json")
    assert box.kubectl("get", "helmchartconfig", "-n", "kube-system", "-o", "name") == ""


@pytest.mark.stub_k3s
def test_the_oldest_k3s_starts_with_what_it_knows(boxes: Callable[..., Box]) -> None:
    """The article's 1.22: kubelet's flags instead of a drop-in, and a datastore in memory as `ci` may have it."""
    box = boxes(environment={"PROFILE": "ci", "DOCKER_MIN_API_VERSION": "1.24"}, options={"tmpfs": ["/app/k3s:exec"]})
    box.volumes = [(f"{box.name}-docker", "/var/lib/docker")]
    box.create()
    program = box.image.folder / "old-k3s"
    program.write_bytes(stub_k3s_build.build("v1.22.17+standin", "linux/amd64"))
    program.chmod(0o755)
    box.docker.copy(program, (box.name, "/usr/local/bin/k3s"))
    manifest = box.image.folder / "manifest.json"
    manifest.write_text(
        json.dumps([{"component": "docker", "version": "20.10.24"}, {"component": "k3s", "version": "v1.22.17+k3s1"}])
    )
    box.docker.copy(manifest, (box.name, "/usr/share/dind-k3s/manifest.json"))
    box.up("all")
    assert in_force(box)["imageGCHighThresholdPercent"] == 100
    assert "v1.22.17" in box.kubectl("get", "nodes")
    assert "dockershim" in box.log()
    assert box.do("bash", "-c", "ls /app/k3s/agent/etc/kubelet.conf.d 2>/dev/null || echo none").strip() in ("", "none")
