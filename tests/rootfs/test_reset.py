"""reset: whatever goes wrong on its way, the programs run again and a whole cluster is there."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from dind_k3s import mounts, programs, reset
from dind_k3s.plan import Mistake

SUPERVISORCTL = """#!/bin/sh
echo "$*" >>"$LOG"
case $1 in
  stop) echo "$2: stopped" ;;
  start) echo "$2: started" ;;
  *) echo 1 ;;
esac
"""
# As in a container whose volume is a folder of the host: the volume, kubelet's folder in it mounted a second time, a
# token and a memory-backed emptyDir below that, something mounted on the token, and what is none of ours.
TABLE = r"""
1 0 0:50 / / rw - overlay overlay rw
2 1 8:1 /volumes/k3s/_data /app/k3s rw - ext4 /dev/sda1 rw
3 1 8:1 /volumes/k3s/_data/.dind-k3s/kubelet /var/lib/kubelet rw shared:1 - ext4 /dev/sda1 rw
4 3 0:60 / /var/lib/kubelet/pods/1/volumes/kubernetes.io~projected/token rw shared:2 - tmpfs tmpfs rw
5 3 0:61 / /var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/with\040space rw - tmpfs tmpfs rw
6 4 0:62 / /var/lib/kubelet/pods/1/volumes/kubernetes.io~projected/token/deeper rw - tmpfs tmpfs rw
7 2 0:63 / /app/k3s/storage/mounted rw - tmpfs tmpfs rw
8 1 8:1 /volumes/docker/_data /var/lib/docker rw - ext4 /dev/sda1 rw
9 8 0:64 / /var/lib/docker/overlay2/1/merged rw - overlay overlay rw
"""


def test_mounts_are_found_by_whichever_path_a_folder_has() -> None:
    table = mounts.parse(TABLE.strip())
    kubelet = mounts.inside(PurePosixPath("/app/k3s/.dind-k3s/kubelet"), table)
    pod = "/var/lib/kubelet/pods/1/volumes"
    assert [str(point) for point, _ in kubelet] == [
        f"{pod}/kubernetes.io~empty-dir/with space",
        f"{pod}/kubernetes.io~projected/token",  # with what is on it
    ]
    assert [str(path) for _, path in kubelet][1] == "pods/1/volumes/kubernetes.io~projected/token"
    assert mounts.inside(PurePosixPath("/var/lib/kubelet"), table) == kubelet
    assert [str(point) for point, _ in mounts.inside(PurePosixPath("/app/k3s/storage"), table)] == [
        "/app/k3s/storage/mounted"
    ]
    assert mounts.inside(PurePosixPath("/app/k3s/server"), table) == []
    assert str(mounts.inside(PurePosixPath("/var/lib/docker"), table)[0][1]) == "overlay2/1/merged"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A running container with a cluster, as far as `reset` can tell."""
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    bin_folder = tmp_path / "bin"
    for name, text in {
        "bin/supervisorctl": SUPERVISORCTL,
        "bin/docker": "#!/bin/sh\nexit 0\n",
        "bin/ip": "#!/bin/sh\nexit 0\n",
        "bin/iptables-save": "#!/bin/sh\nprintf '*nat\\n:CNI-HOSTPORT-DNAT - [0:0]\\n:DOCKER - [0:0]\\nCOMMIT\\n'\n",
        "bin/ip6tables-save": "#!/bin/sh\n",
        "bin/iptables-restore": '#!/bin/sh\ncat >"$LOG.rules"\n',
        "usr/share/dind-k3s/manifest.json": '[{"component": "k3s", "version": "v1.37.1+k3s1"}]',
        "run/dind-k3s/k3s.args": "server\0",
        "app/k3s/server/db/state.db": "",
        "app/k3s/server/token": "old",
        "app/k3s/server/manifests/mine.yaml": "",
        "app/k3s/server/manifests/traefik-dind-k3s.yaml": "",
        "app/k3s/.dind-k3s/ranges.json": "{}",
        "app/k3s/.dind-k3s/versions": "k3s=v1.37.1+k3s1\n",
        "app/k3s/.dind-k3s/kubelet/pods/1/file": "",
        "var/lib/docker/image/file": "",
        "var/lib/docker/.dind-k3s/loaded": "",
        "var/lib/cni/networks/cbr0/10.42.0.2": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.delenv("K3S_URL", raising=False)
    monkeypatch.setattr(programs, "CONTROL", str(tmp_path / "s"))
    monkeypatch.setattr(programs, "cluster_ready", lambda limit: "")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(programs.CONTROL)
        yield tmp_path


def actions(root: Path) -> list[str]:
    """What supervisor was asked to do, after the first question."""
    return (root / "log").read_text().splitlines()[1:]


def fail(root: Path, program: str, message: str) -> None:
    """Make a program fail."""
    path = root / "bin" / program
    path.write_text(f'#!/bin/sh\necho "{message}" >&2\nexit 1\n')
    path.chmod(0o755)


def test_reset_leaves_nothing_of_the_pods_networks(root: Path) -> None:
    assert [*reset.run("cluster", sure=True)][-1] == "the cluster is new and ready"
    assert actions(root) == ["stop k3s", "start k3s"]
    assert not (root / "app/k3s/server/token").exists()
    assert (root / "app/k3s/server/manifests/mine.yaml").exists()
    assert (root / "app/k3s/.dind-k3s/ranges.json").exists()
    assert not [*(root / "app/k3s/.dind-k3s/kubelet").iterdir()]
    assert not (root / "var/lib/cni").exists()
    assert (root / "log.rules").read_text() == "*nat\n:DOCKER - [0:0]\nCOMMIT\n"


def test_reset_all_keeps_what_the_start_of_the_container_generates(root: Path) -> None:
    assert [*reset.run("all", sure=True)] == ["both volumes are as new, and the cluster is ready"]
    assert actions(root) == ["stop k3s", "stop dockerd", "start dockerd", "start preload", "start k3s"]
    assert [path.name for path in (root / "app/k3s/server/manifests").iterdir()] == ["traefik-dind-k3s.yaml"]
    assert [path.name for path in (root / "var/lib/docker").iterdir()] == [".dind-k3s"]
    assert not (root / "var/lib/docker/.dind-k3s/loaded").exists()


@pytest.mark.parametrize("what", ["cluster", "all"])
def test_a_failure_before_anything_is_lost_leaves_the_cluster_and_runs_everything(root: Path, what: str) -> None:
    fail(root, "docker", "device or resource busy")
    with pytest.raises(Mistake, match="docker ps --all: device or resource busy"):
        [*reset.run(what, sure=True)]
    assert actions(root) == ["stop k3s", "start k3s"]
    assert (root / "app/k3s/server/token").read_text() == "old"


def test_a_dockerd_that_does_not_stop_is_started_again_and_k3s_too(root: Path) -> None:
    (root / "bin/supervisorctl").write_text(SUPERVISORCTL.replace('stop) echo "$2: stopped"', 'stop) echo "$2: error"'))
    with pytest.raises(Mistake, match="k3s could not be stopped: k3s: error"):
        [*reset.run("all", sure=True)]
    assert actions(root) == ["stop k3s", "start k3s"]
    assert (root / "app/k3s/server/token").read_text() == "old"


def test_a_program_that_is_still_ending_is_started_when_it_has_ended(root: Path) -> None:
    script = """
  start) if [ -e "$LOG.ended" ]; then echo "$2: started"; else echo "$2: ERROR (abnormal termination)"; fi ;;
  status) if [ -e "$LOG.asked" ]; then touch "$LOG.ended"; fi; touch "$LOG.asked"; echo "$2 STOPPING" ;;
"""
    path = root / "bin/supervisorctl"
    path.write_text(SUPERVISORCTL.replace('  start) echo "$2: started" ;;\n', script))
    programs.start("dockerd")
    assert (root / "log").read_text().splitlines()[-1] == "start dockerd"
    assert (root / "log.ended").exists()


@pytest.mark.parametrize("what", ["cluster", "all"])
def test_what_cannot_be_removed_is_reported_and_stops_nothing(
    root: Path, what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(root, "rm", "rm: cannot remove 'x': Operation not permitted")
    monkeypatch.setattr("sys.argv", ["reset", what, "--yes"])
    assert reset.main() == 2
    written = capsys.readouterr()
    assert "ready\n" in written.out
    assert "this could not be removed: rm: cannot remove 'x': Operation not permitted; " in written.err
    assert actions(root)[-1] == "start k3s"
    assert not (root / "app/k3s/server/token").exists()
    assert not (root / "var/lib/docker/image").exists() or what == "cluster"  # moved aside at least


def test_a_cluster_that_does_not_come_up_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "cluster_ready", lambda limit: "the API server does not answer")
    with pytest.raises(Mistake, match="the new one is not ready: the API server does not answer"):
        [*reset.run("cluster", sure=True)]
    assert actions(root) == ["stop k3s", "start k3s"]


def test_mounts_in_a_folder_do_not_keep_it_from_being_emptied(tmp_path: Path) -> None:
    """For real: the same folder at two paths, mounts below the other one."""
    script = f"""
mount --make-rprivate / && cd {tmp_path} && mkdir -p volume/kubelet/pods/1/token volume/storage kubelet
mount --bind volume/kubelet kubelet && mount -t tmpfs tmpfs kubelet/pods/1/token && echo x >kubelet/pods/1/token/file
PYTHONPATH={Path(reset.__file__).parents[1]} python3 -c '
from pathlib import Path
from dind_k3s import reset
print(reset.empty(Path("{tmp_path}/volume/kubelet")), *Path("{tmp_path}/volume/kubelet").iterdir())'
"""
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    done = subprocess.run(["unshare", "--mount", "bash", "-euc", script], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
