"""dockerd's storage on what users give it: each place ends in a driver that works, or in a message."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.image.box import Box
from tests.image.objects import config_map, create

pytestmark = pytest.mark.engine

ENTRYPOINT = "/usr/local/sbin/dind-k3s-entrypoint"


def after(preparation: str) -> list[str]:
    """The container's command: shell text, then what the image does."""
    return ["bash", "-euc", f"{preparation}\nexec {ENTRYPOINT}"]


# What macOS' bind mounts are like: a FUSE file system that takes writes, but no overlay.
FUSE = """
mkdir -p /fuse && mount -t tmpfs fuse /fuse && mkdir /fuse/lower /fuse/upper /fuse/work
fuse-overlayfs -o lowerdir=/fuse/lower,upperdir=/fuse/upper,workdir=/fuse/work /var/lib/docker
"""
BROKEN = "#!/bin/sh\necho 'not on this machine' >&2\nexit 1\n"

# An ext4 of its own in each volume, which stays over restarts and can be filled without harm to the machine.
SMALL = """
for volume in /var/lib/docker /app/k3s; do
  [[ -e $volume/small ]] || { truncate -s 200M $volume/small && mkfs.ext4 -q -m 0 $volume/small; }
  mount -o loop $volume/small $volume
done
"""
FILL = "for volume in /var/lib/docker /app/k3s; do cat /dev/zero >$volume/fill 2>/dev/null || true; done"


LARGE = "x" * 60_000  # any database wants more room for it


def storage_line(box: Box) -> str:
    """What the last start said about storage."""
    return [line for line in box.log().splitlines() if line.split()[2:3] == ["storage"]][-1]


def works(box: Box, driver: str, output: str) -> None:
    """The driver, the line about it, an image built on it, and a pod that runs the image."""
    box.ready()
    line = storage_line(box)
    assert output in line
    assert ("named volume" in line) == (driver not in ("overlay2", "overlayfs") or "ext4 file" in line), line
    assert box.do("docker", "info", "--format", "{{.Driver}}") == driver
    box.build("mine:1", word=driver)
    box.kubectl("run", "mine", "--image=mine:1", "--image-pull-policy=Never", "--restart=Never")
    box.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/mine", "--timeout=60s")
    assert box.kubectl("logs", "mine") == driver


@pytest.mark.parametrize(
    ("settings", "driver", "output"),
    [
        pytest.param({}, "overlay2", "overlay2 on ext2/ext3, proved", id="named-volume"),
        pytest.param(
            {"command": ["--data-root=/elsewhere"]},
            "fuse-overlayfs",
            "-v docker:/elsewhere",
            id="data-root-on-own-overlay",
        ),
        pytest.param(
            {"volumes": [], "options": {"tmpfs": ["/var/lib/docker"]}}, "overlay2", "overlay2 on tmpfs", id="tmpfs"
        ),
        pytest.param(
            {"command": after(FUSE)},
            "overlay2",
            "overlay2 in an ext4 file, because fuse does not carry it",
            id="fuse",
        ),
        pytest.param(
            {"command": after(FUSE + "rm /usr/sbin/losetup")}, "vfs", "every layer is a whole copy", id="nothing-left"
        ),
    ],
)
def test_each_place_gets_the_best_driver_that_works_there(
    boxes: Callable[..., Box], settings: dict[str, object], driver: str, output: str
) -> None:
    box = boxes(**settings)
    box.start()
    works(box, driver, output)
    assert not box.errors()


def test_a_folder_of_the_host_that_carries_overlay2(
    boxes: Callable[..., Box], tmp_path_factory: pytest.TempPathFactory
) -> None:
    box = boxes()
    folder = box.image.folder / box.name
    box.volumes = [(folder / "docker", "/var/lib/docker"), (folder / "k3s", "/app/k3s")]
    box.start()
    works(box, "overlay2", "overlay2 on ext2/ext3, proved")


def test_the_loop_file_is_found_again_with_what_is_in_it(boxes: Callable[..., Box]) -> None:
    hidden = after("mount --bind /bin/false /usr/bin/fuse-overlayfs; mkdir -p /l/u /l/w; umount /var/lib/docker")
    box = boxes(command=hidden).up("docker")
    assert "overlay2 in an ext4 file, because overlayfs does not carry it" in storage_line(box)
    box.build("kept:1")
    box.docker.restart(box.name)
    box.ready("docker")
    assert "as before" in storage_line(box)
    assert box.do("docker", "run", "--rm", "kept:1") == "hello"


def images(box: Box) -> list[str]:
    return box.do("docker", "images", "--format", "{{.Repository}}:{{.Tag}}").split()


def again(box: Box, **environment: str) -> None:
    """Another container on the same volumes, with other variables."""
    box.environment = {"K3S_DISABLE": "1", **environment}
    box.recreate()
    box.ready("docker")


def test_images_of_another_driver_are_never_hidden_in_silence(boxes: Callable[..., Box]) -> None:
    """A CI system hands DOCKER_DRIVER to every service; flags are what somebody chose for this one."""
    box = boxes(environment={"K3S_DISABLE": "1", "DOCKER_DRIVER": "vfs"}).up("docker")
    box.build("kept:1")
    for environment in ({"DOCKER_DRIVER": "overlay2"}, {}):
        again(box, **environment)
        assert images(box) == ["kept:1"], storage_line(box)
        assert box.do("docker", "run", "--rm", "kept:1") == "hello"
        assert ("warning: DOCKER_DRIVER=overlay2 is not used" in storage_line(box)) == bool(environment)
    again(box, DOCKER_ARGS="--storage-driver overlay2")
    assert "warning: this volume has images of vfs, which overlay2 does not show" in box.log()
    # No build: BuildKit's cache is of the other driver.
    box.shell("tar -C /tmp -c --files-from=/dev/null | docker import - more:1")
    again(box, DOCKER_DRIVER="overlay2")
    assert images(box) == ["more:1"]
    assert "images of vfs, which overlay2 does not show: DOCKER_DRIVER=vfs shows them" in storage_line(box)
    again(box, DOCKER_DRIVER="vfs")
    assert images(box) == ["kept:1"]


def test_what_docker_29_left_in_a_volume_is_used(boxes: Callable[..., Box]) -> None:
    """docker:dind 29 fills a new volume with the containerd image store."""
    box = boxes(
        environment={"K3S_DISABLE": "1"},
        command=after("""mkdir -p /etc/docker
echo '{"features": {"containerd-snapshotter": true}}' >/etc/docker/daemon.json"""),
    ).up("docker")
    box.build("theirs:1")
    box.do("docker", "run", "--detach", "--name", "lives", "theirs:1", "/bin/sleep", "1000")
    box.shell("rm -rf /var/lib/docker/.dind-k3s/*")  # that docker knows nothing of ours
    box.command = ()
    for driver in ("", "overlay2"):  # GitLab's own examples set the latter
        again(box, DOCKER_DRIVER=driver)
        assert images(box) == ["theirs:1"], storage_line(box)
        assert box.do("docker", "info", "--format", "{{.Driver}}") == "overlayfs"
        assert "containerd's image store with overlayfs" in storage_line(box)
    box.do("docker", "start", "lives")
    box.build("ours:1", word="more")
    assert box.do("docker", "run", "--rm", "ours:1") == "more"
    box.environment = {}
    box.recreate()
    works(box, "overlayfs", "containerd's image store")


def test_a_full_disk_is_told_once_and_recovered_from_when_it_has_room_again(boxes: Callable[..., Box]) -> None:
    box = boxes(command=after(SMALL)).up()
    create(box, config_map("kept"))
    box.shell(FILL)
    with pytest.raises(AssertionError):  # noqa: PT012
        for number in range(50):
            create(box, config_map(f"too-much-{number}", text=LARGE))
    for program in ("k3s", "dockerd"):
        box.do("kill", "-9", str(box.pid(program)))
    box.until("the line about it", lambda: "is full" in box.log())
    box.do("rm", "/var/lib/docker/fill", "/app/k3s/fill")
    box.ready()
    box.kubectl("get", "configmap", "kept")
    assert box.log().count("started again when there is room") == 1
    # A start without room.
    box.shell(FILL)
    box.docker.kill(box.name)
    box.start()
    box.until("the daemons", lambda: box.log().count("supervisor, then dockerd, then k3s") == 2)
    box.do("rm", "/var/lib/docker/fill", "/app/k3s/fill")
    box.ready()
    box.kubectl("get", "configmap", "kept")
    assert not [line for line in box.log().splitlines() if "Traceback" in line and not line.startswith("[k3s]")]
    assert not box.errors()


def test_a_new_volume_that_is_full_is_refused_with_a_sentence(boxes: Callable[..., Box]) -> None:
    full = "mount -t tmpfs -o size=1m small /var/lib/docker; cat /dev/zero >/var/lib/docker/fill || true"
    box = boxes(command=after(full))
    box.start()
    code, _ = box.ends()
    assert code == 2
    assert box.errors() == [
        "the volume at /var/lib/docker is full, so no storage driver can be tried in it; make room in it"
    ]


def test_a_read_only_volume_is_refused_with_a_sentence(boxes: Callable[..., Box]) -> None:
    box = boxes(command=after("mount -o remount,bind,ro /app/k3s"))
    box.start()
    code, _ = box.ends()
    assert code == 2
    (messages,) = box.errors()
    assert messages.startswith("the volume at /app/k3s cannot be written (Read-only file system); mount it without :ro")
