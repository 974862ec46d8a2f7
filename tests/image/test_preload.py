"""What a user puts into /app/images and /app/manifests: loaded and applied at the start, and part of readiness."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.image.box import Box

pytestmark = pytest.mark.engine

LOOK = "printf x >/run/dind-k3s/wake"  # the watcher, now and not within its ten seconds

POD = """
apiVersion: v1
kind: Pod
metadata: {name: from-file}
spec:
  restartPolicy: Never
  containers: [{name: main, image: "packed:1", imagePullPolicy: Never}]
"""
CONFIG_MAP = """
apiVersion: v1
kind: ConfigMap
metadata: {name: %s}
data: {key: "%s"}
"""


def state(box: Box) -> dict[str, Any]:
    return dict(json.loads(box.do("cat", "/run/dind-k3s/state.json")))


def box_folder(box: Box) -> Path:
    """A folder of the outer machine for the box's /app/images and /app/manifests, as bind mounts."""
    folder = box.image.folder / f"{box.name}-app"
    for name in ("images", "manifests"):
        (folder / name).mkdir(parents=True)
    box.volumes = [*box.own_volumes.items(), *((folder / name, f"/app/{name}") for name in ("images", "manifests"))]
    return folder


def test_images_and_manifests_are_there_when_it_is_ready(boxes: Callable[..., Box]) -> None:
    folder = box_folder(box := boxes())
    (folder / "manifests/My_Pod.yaml").write_text(POD)
    (folder / "manifests/off.yaml").write_text("no: object\n")
    (folder / "manifests/off.yaml.skip").touch()
    (folder / "images/broken.tar").write_text("this is no archive\n")
    box.up("k8s")
    # Nothing can be loaded from the broken one, so waiting ends at once with the reason.
    assert "broken.tar" in box.fails("wait-ready", "--for", "addons", "--timeout", "60")
    assert state(box)["health"] == "failing"
    # The pod waits for packed:1, which the archive alone is to bring: so it is built under a name as long.
    box.build("source:1", word="packed")
    box.shell("docker save source:1 | sed s/source:1/packed:1/g | zstd -q -o /app/images/packed.tar.zst")
    box.shell("rm /app/images/broken.tar; docker image rm source:1; supervisorctl start preload")
    loaded = {"packed.tar.zst": "loaded"}
    box.until("the archive", lambda: {k: v["state"] for k, v in state(box)["images"].items()} == loaded, 30)
    box.ready("all", 30)
    found = state(box)
    assert found["manifests"] == {"app-my-pod": "applied"}
    box.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/from-file", "--timeout=30s")
    assert box.kubectl("logs", "from-file") == "packed"
    assert "AppliedManifest" in box.kubectl("get", "events", "-n", "kube-system")

    # An edit is taken up while it runs; one that cannot be applied is reported with k3s's own words, and heals.
    box.shell(f"echo '{CONFIG_MAP % ('later', 'x')}' | sed s/ConfigMap/Nothing/ >/app/manifests/later.yaml; {LOOK}")
    box.until("the failure", lambda: "no matches for kind" in str(state(box)["problems"].get("manifests")), 20)
    box.shell(f"echo '{CONFIG_MAP % ('later', 'x')}' >/app/manifests/later.yaml; {LOOK}")
    box.until("the edit", lambda: state(box)["manifests"].get("app-later") == "applied", 20)

    # A new container: what is loaded is not loaded again; a file that is gone leaves its objects, and that is said.
    (folder / "manifests/later.yaml").unlink()
    box.recreate()
    box.ready("all")
    assert state(box)["images"]["packed.tar.zst"]["state"] == "known"
    assert "app-later.yaml is not in /app/manifests any more; its objects stay" in box.log()
    assert box.kubectl("get", "configmap", "later", "-o", "jsonpath={.data.key}") == "x"


def image_states(box: Box) -> dict[str, str]:
    return {name: image["state"] for name, image in state(box)["images"].items()}


def test_what_dockerd_lacks_is_loaded_again_whatever_was_written_down(boxes: Callable[..., Box]) -> None:
    folder = box_folder(box := boxes(environment={"K3S_DISABLE": "1"}))
    (folder / "images/more").mkdir()
    box.up("docker")
    for number, pack in enumerate(("xz -0 >/app/images/more/a.tar.xz", "cat >/app/images/B.TAR")):
        box.build(f"packed:{number}", word=f"{number}")
        box.shell(f"docker save packed:{number} | {pack}")
    box.shell("docker save $(docker images --quiet packed:0) >/app/images/by-id.tar; echo words >/app/images/notes.md")
    names = {"more/a.tar.xz", "B.TAR", "by-id.tar"}
    known = f"{box.do('printenv', 'HOME')}/known"  # survives a restart
    for marks in ("cat", "cut -f1"):  # an older release wrote no names of images
        box.shell(f"docker system prune -af; cd /var/lib/docker/.dind-k3s; touch loaded; {marks} loaded >{known}")
        box.shell(f"cat {known} >/var/lib/docker/.dind-k3s/loaded")
        box.docker.restart(box.name)
        box.ready("all")
        assert image_states(box) == dict.fromkeys(names, "loaded")
        assert box.do("docker", "run", "--rm", "packed:0") == "0"
        assert box.do("docker", "run", "--rm", "packed:1") == "1"
    assert ".tar.zst are: notes.md" in box.log()
    box.docker.restart(box.name)
    box.ready("all")
    assert image_states(box) == dict.fromkeys(names, "known")
