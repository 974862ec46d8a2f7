"""dockerd's storage on what users give it: each place ends in a driver that works, or in a sentence."""

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


def works(box: Box, driver: str, said: str) -> None:
    """The driver, the line about it, an image built on it, and a pod that runs the image."""
    box.ready()
    line = storage_line(box)
    assert said in line
    assert ("named volume" in line) == (driver != "overlay2" or "ext4 file" in line), line
    assert box.do("docker", "info", "--format", "{{.Driver}}") == driver
    box.build("mine:1", word=driver)
    box.kubectl("run", "mine", "--image=mine:1", "--image-pull-policy=Never", "--restart=Never")
    box.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/mine", "--timeout=60s")
    assert box.kubectl("logs", "mine") == driver


@pytest.mark.parametrize(
    ("settings", "driver", "said"),
    [
        pytest.param({}, "overlay2", "overlay2 on ext2/ext3, proved", id="named-volume"),
        pytest.param(
            {"command": after("umount /var/lib/docker /app/k3s")},
            "fuse-overlayfs",
            "slow: overlayfs does not carry overlay2",
            id="own-overlay",
        ),
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
    boxes: Callable[..., Box], settings: dict[str, object], driver: str, said: str
) -> None:
    box = boxes(**settings)
    box.start()
    works(box, driver, said)
    assert not box.errors()


def test_a_folder_of_the_host_that_carries_overlay2(
    boxes: Callable[..., Box], tmp_path_factory: pytest.TempPathFactory
) -> None:
    box = boxes()
    folder = box.image.folder / box.name
    box.volumes = [(folder / "docker", "/var/lib/docker"), (folder / "k3s", "/app/k3s")]
    box.start()
    works(box, "overlay2", "overlay2 on ext2/ext3, proved")
    box.docker.restart(box.name)
    box.ready()
    assert "as before" in storage_line(box)


def test_the_loop_file_is_found_again_with_what_is_in_it(boxes: Callable[..., Box]) -> None:
    hidden = after("mount --bind /bin/false /usr/bin/fuse-overlayfs; mkdir -p /l/u /l/w; umount /var/lib/docker")
    box = boxes(command=hidden).up("docker")
    assert "overlay2 in an ext4 file, because overlayfs does not carry it" in storage_line(box)
    box.build("kept:1")
    box.docker.restart(box.name)
    box.ready("docker")
    assert "as before" in storage_line(box)
    assert box.do("docker", "run", "--rm", "kept:1") == "hello"


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
    assert box.state()["running"]


def test_a_start_on_full_volumes_goes_on_as_soon_as_there_is_room(boxes: Callable[..., Box]) -> None:
    box = boxes(command=after(SMALL)).up()
    create(box, config_map("kept"))
    box.shell(FILL)
    box.docker.kill(box.name)
    box.start()
    box.until("the daemons", lambda: box.log().count("supervisor, then dockerd, then k3s") == 2)
    box.do("rm", "/var/lib/docker/fill", "/app/k3s/fill")
    box.ready()
    box.kubectl("get", "configmap", "kept")
    assert "Traceback" not in box.log()
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


@pytest.mark.parametrize("volume", ["/var/lib/docker", "/app/k3s"])
def test_a_read_only_volume_is_refused_with_a_sentence(boxes: Callable[..., Box], volume: str) -> None:
    box = boxes(command=after(f"mount -o remount,bind,ro {volume}"))
    box.start()
    code, _ = box.ends()
    assert code == 2
    (told,) = box.errors()
    assert told.startswith(f"the volume at {volume} cannot be written (Read-only file system); mount it without :ro")
