"""What k3s is started with, for every version that can be put into the image."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from dind_k3s import dockerd, k3s, k3s_config, k3s_versions, limits
from dind_k3s.plan import Mistake, Plan
from dind_k3s.volume import TRAEFIK_CONFIG

FACTS = {"storage": "overlay2", "cgroup": "2"}
NEWEST = (1, 37, 1)
AGENT = {"K3S_URL": "https://server:6443", "K3S_TOKEN": "secret"}


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image's Python programs read and write below `tmp_path`."""
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))


def config(plan: Plan) -> dict[str, str]:
    """Key → what stands behind it in our fragment."""
    blocks = plan.files["/run/dind-k3s/k3s/config.yaml"].replace("\n  - ", " ").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in blocks[1:])}


def drop_in(plan: Plan) -> dict[str, object]:
    return dict(json.loads(plan.files[k3s.DROP_IN] or "{}"))


def arguments(plan: Plan) -> list[str]:
    return plan.files["/run/dind-k3s/k3s.args"].split("\0")[:-1]


@pytest.mark.parametrize("version", [(1, 22, 17), (1, 32, 9), (1, 33, 1), (1, 35, 0), NEWEST])
def test_images_that_a_user_built_are_never_cleaned_away_by_kubelet(version: tuple[int, ...]) -> None:
    plan = k3s.plan({}, FACTS, version, "dev")
    if version < (1, 33):
        assert '"image-gc-high-threshold=100"' in config(plan)["kubelet-arg"]
        assert "imagefs.available<0%" in config(plan)["kubelet-arg"]
        assert drop_in(plan) == {}
    else:
        assert "kubelet-arg" not in config(plan)
        assert drop_in(plan)["imageGCHighThresholdPercent"] == 100
        evict = drop_in(plan)["evictionHard"]
        assert evict == {"memory.available": "100Mi", "nodefs.available": "0%", "imagefs.available": "0%"}


def test_an_edge_device_has_kubelet_clean_up() -> None:
    plan = k3s.plan({}, FACTS, NEWEST, "edge")
    assert (drop_in(plan), "kubelet-arg" in config(plan)) == ({}, False)


@pytest.mark.parametrize(("version", "messages"), [((1, 34, 9), False), ((1, 35, 0), True)])
def test_kubelet_is_told_to_take_cgroup_v1_from_1_35_on(version: tuple[int, ...], messages: bool) -> None:
    plan = k3s.plan({}, {**FACTS, "cgroup": "1"}, version, "dev")
    assert (drop_in(plan).get("failCgroupV1") is False) == messages
    assert any(line.startswith("warning: kubelet is set to accept cgroup v1") for line in plan.messages) == messages
    assert "failCgroupV1" not in drop_in(k3s.plan({}, FACTS, version, "dev"))


@pytest.mark.parametrize(("version", "known"), [((1, 22, 9), False), ((1, 23, 6), False), ((1, 24, 4), True)])
def test_a_setting_goes_only_to_a_version_all_of_whose_patches_know_it(version: tuple[int, ...], known: bool) -> None:
    assert ("egress-selector-mode" in config(k3s.plan({}, FACTS, version, "dev"))) == known


@pytest.mark.parametrize(
    ("version", "docker", "why"),
    [
        ((1, 24, 2), (28, 5, 2), "cannot use docker at all"),
        ((1, 26, 8), (25, 0, 1), "ImageInspectError"),
        ((1, 29, 1), (28, 0, 0), "ImageInspectError"),
        ((1, 25, 16), (29, 0, 0), "DOCKER_MIN_API_VERSION"),
        ((1, 22, 17), (29, 7, 2), "DOCKER_MIN_API_VERSION"),
        ((1, 28, 7), (29, 7, 2), ""),
        ((1, 22, 17), (28, 5, 2), ""),
        ((1, 26, 8), (24, 0, 7), ""),
        (NEWEST, (29, 7, 2), ""),
    ],
)
def test_pairs_that_run_no_pod_are_refused(version: tuple[int, ...], docker: tuple[int, ...], why: str) -> None:
    if why:
        with pytest.raises(Mistake, match=why):
            k3s.plan({}, FACTS, version, "dev", docker)
    else:
        k3s.plan({}, FACTS, version, "dev", docker)


def test_the_door_for_old_clients_is_a_warning() -> None:
    plan = k3s.plan({"DOCKER_MIN_API_VERSION": "1.24"}, FACTS, (1, 25, 16), "dev", (29, 7, 2))
    assert any("only by DOCKER_MIN_API_VERSION" in line for line in plan.messages)
    assert not k3s_versions.too_old_to_talk((1, 30, 0), (29, 7, 2))


def test_an_agent_has_its_own_settings_and_a_name_that_stays(tmp_path: Path) -> None:
    plan = k3s.plan(AGENT, FACTS, NEWEST, "dev")
    assert config(plan).keys() == {"docker", "data-dir", "node-name", "resolv-conf"}
    assert arguments(plan) == ["agent"]
    assert plan.files[TRAEFIK_CONFIG] == ""
    assert f'"{plan.files[k3s.NODE_NAME].strip()}"' == config(plan)["node-name"]
    (tmp_path / "app/k3s/.dind-k3s").mkdir(parents=True)
    (tmp_path / "app/k3s/.dind-k3s/node-name").write_text("first\n")
    again = k3s.plan(AGENT, FACTS, NEWEST, "dev")
    assert config(again)["node-name"] == '"first"'
    assert config(k3s.plan({**AGENT, "K3S_NODE_NAME": "mine"}, FACTS, NEWEST, "dev"))["node-name"] == '"mine"'


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"K3S_URL": "https://server:6443"}, "an agent needs K3S_TOKEN or K3S_TOKEN_FILE"),
        ({"K3S_URL": "server:6443", "K3S_TOKEN": "x"}, "K3S_URL is server:6443"),
        ({"K3S_URL": "https://server:6443", "K3S_TOKEN_FILE": "/run/nothing"}, "K3S_TOKEN_FILE is /run/nothing"),
        ({"K3S_ARGS": "agent"}, "an agent needs K3S_URL"),
        ({"K3S_ARGS": "--config /nowhere.yaml"}, "/nowhere.yaml, but there is no such file"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(env: dict[str, str], why: str) -> None:
    with pytest.raises(Mistake, match=why):
        k3s.plan(env, FACTS, NEWEST, "dev")


def test_a_configuration_named_in_k3s_args_is_read_after_the_others(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("debug: true\n")
    plan = k3s.plan({"K3S_ARGS": "server -c /mine.yaml --debug"}, FACTS, NEWEST, "dev")
    assert plan.files["/run/dind-k3s/k3s/also"] == "/mine.yaml"
    assert arguments(plan) == ["server", "--debug"]


def test_the_users_files_are_read_in_k3ss_own_order(tmp_path: Path) -> None:
    """config.yaml first, then what is in config.yaml.d by name; /etc before /app, and the file of --config last."""
    files = {
        "etc/rancher/k3s/config.yaml.d/99-etc.yaml": "node-name: etc\n",
        "app/k3s/config.yaml": "node-name: main\ntoken: main\n",
        "app/k3s/config.yaml.d/20-more.YML": "node-name: more\n",
        "app/k3s/config.yaml.d/10-mine.yaml": "node-name: mine\ntoken: mine\n",
        "app/k3s/config.yaml.d/ignored.txt": "node-name: ignored\n",
        "mine.yaml": "server: https://named:6443\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    env = {"K3S_ARGS": "-c /mine.yaml --node-ip=::1"}
    assert k3s_config.files(env) == [
        "/etc/rancher/k3s/config.yaml",
        "/etc/rancher/k3s/config.yaml.d/99-etc.yaml",
        "/app/k3s/config.yaml",
        "/app/k3s/config.yaml.d/10-mine.yaml",
        "/app/k3s/config.yaml.d/20-more.YML",
        "/mine.yaml",
    ]
    given = k3s_config.given(env, "node-name", "token", "server", "node-ip", "disable")
    assert given == {"node-name": "more", "token": "mine", "server": "https://named:6443", "node-ip": "::1"}
    assert k3s_config.given({"K3S_ARGS": "--node-name last"}, "node-name") == {"node-name": "last"}
    listed = {"K3S_ARGS": "--disable=traefik --disable coredns --node-name=a --node-name=b"}
    assert k3s_config.given(listed, "node-name", "disable") == {"node-name": "b", "disable": "traefik,coredns"}


@pytest.mark.parametrize(
    ("env", "files", "several"),
    [
        ({}, {}, False),
        ({"K3S_ARGS": "--cluster-init --debug"}, {}, True),
        ({"K3S_ARGS": "server --server=https://first:6443", "K3S_TOKEN": "x"}, {}, True),
        ({"K3S_ARGS": "server", "K3S_URL": "https://first:6443", "K3S_TOKEN_FILE": "/token"}, {}, True),
        ({"K3S_ARGS": "server", "K3S_URL": "https://localhost:6443"}, {}, False),  # as Testcontainers has it
        ({"K3S_DATASTORE_ENDPOINT": "mysql://db"}, {}, True),
        ({}, {"app/k3s/config.yaml": "cluster-init: true\n"}, True),
        ({}, {"app/k3s/config.yaml": "cluster-init: false\n"}, False),
        ({"K3S_ARGS": "--cluster-init"}, {"app/k3s/server/db/state.db": ""}, False),  # a cluster that began with one
        ({}, {"app/k3s/.dind-k3s/node-name": "host-1\n", "app/k3s/server/db/etcd/x": ""}, True),  # of an earlier start
    ],
)
def test_a_server_is_local_node_unless_it_is_one_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], files: dict[str, str], several: bool
) -> None:
    monkeypatch.setattr("os.uname", lambda: os.uname_result(("Linux", "host-1", "", "", "")))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    plan = k3s.plan(env, FACTS, NEWEST, "dev")
    assert config(plan)["node-name"] == ('"host-1"' if several else '"local-node"')


def as_command(root: Path, *command: str) -> None:
    """What the entrypoint leaves of the container's command."""
    (root / "run/dind-k3s").mkdir(parents=True, exist_ok=True)
    (root / "run/dind-k3s/k3s.command").write_text("".join(f"{word}\0" for word in command))


def test_the_containers_command_wins_over_variables(tmp_path: Path) -> None:
    env = {**AGENT, "K3S_ARGS": "agent --debug --node-label=a=b"}
    as_command(tmp_path, "server", "--node-label=c d")
    plan = k3s.plan(env, FACTS, NEWEST, "dev")
    assert arguments(plan) == ["server", "--debug", "--node-label=a=b", "--node-label=c d"]
    assert k3s_config.joins(env) == AGENT["K3S_URL"]  # a server that joins, as k3s has it, since there is a token
    as_command(tmp_path, "agent", "--server", "https://other:6443")
    assert arguments(k3s.plan({"K3S_TOKEN": "x"}, FACTS, NEWEST, "dev"))[0] == "agent"
    assert k3s_config.joins(AGENT) == "https://other:6443"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["server", "--help"], "--help in the container's command does not start k3s"),
        (["server", "extra"], "the container's command has the word extra where a flag is expected"),
        (["server", "-c", "/nowhere.yaml"], "the container's command names the configuration /nowhere.yaml"),
        (["agent"], "an agent needs K3S_URL"),
    ],
)
def test_the_containers_command_is_checked_as_k3s_args_are(tmp_path: Path, command: list[str], why: str) -> None:
    as_command(tmp_path, *command)
    with pytest.raises(Mistake, match=why):
        k3s.plan({}, FACTS, NEWEST, "dev")


def test_folders_that_are_mounted_noexec(monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.statvfs(Path.cwd())
    flags = [*really]
    flags[8] |= os.ST_NOEXEC
    monkeypatch.setattr("os.statvfs", lambda path: os.statvfs_result(flags) if path.name != "else" else really)
    with pytest.raises(Mistake, match="is mounted noexec, and k3s runs its programs from /app/k3s/data"):
        k3s.refuse_noexec("/app/k3s")
    with pytest.raises(Mistake, match="vfs runs containers from there"):
        dockerd.plan({}, [], {"storage": "vfs"}, (28, 5), "dev")
    messages = dockerd.plan({}, [], {"storage": "overlay2"}, (28, 5), "dev").messages
    assert messages == ["warning: / is mounted noexec: no program in a docker volume can be run"]
    Path(os.environ["DIND_K3S_TEST_ROOT"], "else").mkdir()
    k3s.refuse_noexec("/else")


def test_flags_that_meet_a_setting_of_ours_are_told() -> None:
    messages = k3s.plan({"K3S_ARGS": "--tls-san x -d /else --flannel-backend=vxlan"}, FACTS, NEWEST, "dev").messages
    assert "--tls-san in K3S_ARGS adds to our tls-san" in messages
    assert "--flannel-backend in K3S_ARGS replaces our flannel-backend" in messages
    assert any(line.startswith("warning: -d leads out of the volume") for line in messages)


def test_names_for_the_certificate_and_a_network_of_more_than_one_segment() -> None:
    settings = config(k3s.plan({"K3S_TLS_SAN": "a.example, b.example"}, FACTS, NEWEST, "dev"))
    assert '"host.docker.internal"' in settings["tls-san"]
    assert '"a.example" "b.example"' in settings["tls-san"]
    assert settings["egress-selector-mode"] == '"disabled"'
    wide = config(k3s.plan({"K3S_FLANNEL_BACKEND": "vxlan"}, FACTS, NEWEST, "dev"))
    assert wide["flannel-backend"] == '"vxlan"'
    assert "egress-selector-mode" not in wide


@pytest.mark.parametrize(
    ("profile", "switch", "without", "configured"),
    [
        ("dev", "", "", True),
        ("dev", "0", '"traefik"', False),
        ("ci", "", '"traefik" "servicelb" "metrics-server"', False),
        ("ci", "1", '"servicelb" "metrics-server"', True),
        ("edge", "", "", True),
    ],
)
def test_traefik_takes_ports_80_and_443_or_is_left_out(
    profile: str, switch: str, without: str, configured: bool
) -> None:
    plan = k3s.plan({"K3S_TRAEFIK": switch}, FACTS, NEWEST, profile)
    assert config(plan).get("disable", "") == without
    assert ("hostPort: 443" in plan.files[TRAEFIK_CONFIG]) == configured


@pytest.mark.parametrize(
    "arguments",
    [
        "--disable=coredns --disable=traefik --disable=servicelb",
        "--disable traefik,coredns",
        "--disable-helm-controller",
    ],
)
def test_traefik_is_not_configured_where_the_user_leaves_it_out(arguments: str) -> None:
    assert k3s.plan({"K3S_ARGS": arguments}, FACTS, NEWEST, "dev").files[TRAEFIK_CONFIG] == ""


def test_our_manifest_comes_after_those_that_pods_wait_for_and_before_traefiks() -> None:
    name = Path(TRAEFIK_CONFIG).name
    assert sorted(["rolebindings.yaml", "runtimes.yaml", name, "traefik.yaml"])[2] == name


def test_a_traefik_configuration_of_the_users_replaces_ours(tmp_path: Path) -> None:
    (tmp_path / "app/manifests").mkdir(parents=True)
    mine = tmp_path / "app/manifests/traefik-config.yaml"
    mine.write_text(
        "kind: ConfigMap\nmetadata:\n  name: traefik\n---\nkind: HelmChartConfig\nmetadata:\n  name: other\n"
    )
    assert k3s.plan({}, FACTS, NEWEST, "dev").files[TRAEFIK_CONFIG]
    mine.write_text("apiVersion: helm.cattle.io/v1\nkind: HelmChartConfig\nmetadata:\n  name: traefik\n")
    plan = k3s.plan({}, FACTS, NEWEST, "dev")
    assert plan.files[TRAEFIK_CONFIG] == ""
    assert any("traefik-config.yaml" in line for line in plan.messages)


def test_what_the_container_may_not_use_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:       16777216 kB\n")
    assert limits.system_reserved() == {}
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/init\n")
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{4 << 30}\n")
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("150000 100000\n")
    assert limits.system_reserved() == {"cpu": "6500m", "memory": "12288Mi"}
    assert drop_in(k3s.plan({}, FACTS, NEWEST, "edge"))["systemReserved"] == {"cpu": "6500m", "memory": "12288Mi"}
    old = config(k3s.plan({}, FACTS, (1, 30, 2), "edge"))["kubelet-arg"]
    assert old == '"system-reserved=cpu=6500m,memory=12288Mi"'
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    assert limits.system_reserved() == {}


def test_limits_of_cgroup_v1_lie_in_the_groups_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n")
    for controller, name, text in (
        ("memory", "memory.limit_in_bytes", "1073741824"),
        ("cpu", "cpu.cfs_quota_us", "-1"),
        ("cpu", "cpu.cfs_period_us", "100000"),
    ):
        folder = tmp_path / f"sys/fs/cgroup/{controller}/docker/x"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")
    assert limits.memory_limit() == 1 << 30
    assert limits.cpu_limit() == float("inf")
