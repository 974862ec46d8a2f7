"""Any combination of variables and configuration files: it starts, or it ends with sentences that name the source."""

from __future__ import annotations

import json
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.image.box import Box

pytestmark = pytest.mark.engine

COUNT = 200
REAL = 10
DRIVER = Path(__file__).with_name("driver.py")

Case = dict[str, Any]

# Everything that is taken here also starts; the rest has to be refused before a daemon dies of it.
DOCKER_FLAGS = [
    *("--debug", "-D", "--mtu 1400", "--label a=b", "--label 'a=b c'", "--log-level=warn", "--shutdown-timeout 5"),
    *("--storage-driver vfs", "-s vfs", "--registry-mirror https://m.example", "--insecure-registry 'r:5000'"),
    *("-H tcp://127.0.0.1:2375 --tls=false", "--config-file /etc/docker/other.json", "--feature buildkit=true"),
]
NO_DOCKER_FLAGS = [
    *("--mtu x", "--nonsense", "word", "'open", 'x"', "--log-level loud", "--dns nope", "--config-file", "--help"),
    *("--config-file /nowhere", "--config-file=relative", "--validate", "-v", "-H bogus://x", "\\", "\n", "é\x07"),
]
K3S_FLAGS = [
    *("--debug", "--disable traefik", "--disable=servicelb", "--node-label a=b", "--tls-san x.example", "server"),
    *("--write-kubeconfig-mode 0644", "--data-dir /app/k3s", "\n"),
]
NO_K3S_FLAGS = ["agent", "'open", "--help", "-v"]
DAEMON_JSON: dict[str, list[object]] = {  # the first half is right
    "mtu": [1400, 1450, None, "x", 1.5, []],
    "debug": [True, False, "yes", {}],
    "log-level": ["info", "warn", "loud", 7],
    "hosts": [["unix:///var/run/docker.sock"], ["tcp://127.0.0.1:2376"], "tcp://x", [5]],
    "labels": [["a=b"], [], "a=b", {}],
    "dns": [["192.0.2.1"], [], ["nope"], "192.0.2.1"],
    "features": [{"buildkit": True}, {}, [], {"buildkit": "x"}],
    "exec-opts": [["native.cgroupdriver=cgroupfs"], [], {}, "x"],
    "default-network-opts": [{"bridge": {}}, {}, [], 5],
    "log-opts": [{"max-size": "5m"}, {}, ["max-size=5m"], 1],
    "storage-driver": ["vfs", None, 5, {}],
    "no-such-key": [1],
}
RAW_JSON = [
    *("", " ", "{", "[]", "null", "5", '"x"', '{"mtu": 1400,}', '\ufeff{"mtu": 1400}', "// x\n{}", '{"mtu": NaN}'),
    *('{"mtu": 1400, "mtu": 1450}', "[" * 5000, '{"mtu": "\udcff"}', '{"\x00": 1}', "\udcff\udcfe{"),
]
YAML = [
    *("", "# nothing\n", "node-label:\n  - a=b\n", "disable:\n  - traefik\n", "write-kubeconfig-mode: '0644'\n"),
    *("tls-san: [x.example]\n", "debug: true\n", "no-such-key: 1\n", "debug: true\r\n"),
]
NO_YAML = [
    *(
        "a: b: c\n",
        "a: b\n\tc: d\n",
        "only words\n",
        "- a\n- b\n",
        "debug: 'x\n",
        "\udcff: x\n",
        "a: \x00\n",
        "a: [1\n",
    ),
]

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
odd = words | st.binary(max_size=6).filter(lambda data: 0 not in data).map(
    lambda data: data.decode(errors="surrogateescape")
)
huge = st.sampled_from(["x", "a b ", "é", "'", "\n"]).map(lambda text: text * (100_000 // len(text.encode())))


def mostly(
    good: Sequence[str], bad: Sequence[str], anything: st.SearchStrategy[str] = odd | huge
) -> st.SearchStrategy[str]:
    """What people write, now and then a mistake, and anything."""
    usual = st.sampled_from(good)
    return st.sampled_from([*[usual] * 8, st.sampled_from(bad), anything]).flatmap(lambda kind: kind)


def flags(
    good: Sequence[str], bad: Sequence[str], anything: st.SearchStrategy[str] = odd | huge
) -> st.SearchStrategy[str]:
    """Some of them in a row, each meaning once."""
    some = st.lists(st.sampled_from(good), max_size=2, unique_by=lambda flag: flag.strip("-")[:1]).map(" ".join)
    return st.sampled_from([*[some] * 4, mostly(good, bad, anything)]).flatmap(lambda kind: kind)


SWITCH = mostly(["", "0", "1", "no", "Yes", "off", "TRUE"], ["maybe", "\n"])
VARIABLES = {
    "DOCKER_ARGS": flags(DOCKER_FLAGS, NO_DOCKER_FLAGS),
    # No flags by chance: which ones there are, only k3s knows. It says so, and the container ends with status 3.
    "K3S_ARGS": flags(K3S_FLAGS, NO_K3S_FLAGS, odd.filter(lambda text: "-" not in text) | huge),
    "PROFILE": mostly(["dev", "ci", "edge", ""], ["prod"]),
    "K3S_DISABLE": SWITCH,
    "K3S_TRAEFIK": SWITCH,
    "K3S_RENEW_HOURS": mostly(["3-5", ""], ["3", "night"]),
    "DOCKER_MIN_API_VERSION": mostly(["1.24", ""], ["24"]),
    "K3S_NODE_NAME": mostly(["node-1", "local-node"], ["Node_1"]),
    "K3S_KUBECONFIG_MODE": mostly(["0600", "644"], ["rw"]),
    "K3S_KUBECONFIG_OUTPUT": mostly(["/app/k3s/k3s.yaml"], ["relative", "/app"]),
    "K3S_TLS_SAN": mostly(["a.example", "a.example, 10.0.0.1"], ["a;b"]),
    "DOCKER_DRIVER": mostly(["overlay2", "vfs", ""], ["none"]),
    "DIND_K3S_STOP_GRACE": mostly(["5", "0.5"], ["soon", "nan"]),
    "DIND_K3S_HOST_SYSCTL": SWITCH,
}
environments = st.lists(st.sampled_from(sorted(VARIABLES)), max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: VARIABLES[name] for name in names})
)


def setting(key: str) -> st.SearchStrategy[tuple[str, object]]:
    """A key of daemon.json with a value that is mostly right."""
    values = DAEMON_JSON[key]
    return st.tuples(st.just(key), st.sampled_from(values[: len(values) // 2] * 6 + values))


daemon_json = st.lists(st.sampled_from(sorted(DAEMON_JSON)).flatmap(setting), max_size=2).map(
    lambda found: json.dumps(dict(found))
)
files = st.fixed_dictionaries(
    {"/etc/docker/other.json": st.just("{}")},
    optional={
        "/etc/docker/daemon.json": st.one_of([*[daemon_json] * 8, st.sampled_from(RAW_JSON), st.none()]),
        "/app/k3s/config.yaml": st.one_of([*[mostly(YAML, NO_YAML)] * 9, st.none()]),
        "/app/k3s/config.yaml.d/mine.yaml": st.sampled_from(YAML),
        "/etc/rancher/k3s/config.yaml": mostly(YAML, NO_YAML),
    },
)
facts = st.fixed_dictionaries(
    {"storage": st.sampled_from(["overlay2", "vfs"]), "cgroup": st.sampled_from("12")},
    optional={"mtu": st.sampled_from(["1500", "1450"]), "dns": st.just("192.0.2.7")},
)
cases = st.fixed_dictionaries(
    {
        "env": environments,
        "files": files,
        "facts": facts,
        "extra": st.sampled_from([[], [], [], [], ["--debug"], ["-H", "tcp://127.0.0.1:2377"], ["--nonsense"]]),
    }
)


def picked() -> list[Case]:
    """The same cases at every run, each once."""
    found: dict[str, Case] = {}

    @settings(
        max_examples=2 * COUNT, derandomize=True, database=None, phases=[Phase.generate], deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases)
    def pick(case: Case) -> None:
        found[json.dumps(case, sort_keys=True)] = case

    pick()
    return [*found.values()][:COUNT]


CASES = picked()


def wrong(case: Case, outcome: dict[str, Any]) -> str:
    """What the outcome must not be; empty when it is right."""
    if "traceback" in outcome:
        return str(outcome["traceback"])
    if outcome["code"] == 0:
        return f"taken, and then refused: {outcome['refused']}" if outcome["refused"] else ""
    if outcome["code"] != 2:
        return f"exit code {outcome['code']}"
    lines = outcome["err"].split("\n")
    if lines.pop() or not lines:
        return "no whole lines"
    return next((f"not a sentence of ours: {line!r}" for line in lines if not named(case, line)), "")


def named(case: Case, line: str) -> bool:
    """Whether it is an error that names a variable, a file or the command."""
    sources = [*case["env"], *case["files"], *(["the container's command", "DOCKER_ARGS"] if case["extra"] else [])]
    return bool(re.match(r"dind-k3s: error: .", line)) and len(line) < 1200 and any(name in line for name in sources)


@pytest.mark.stub_k3s  # the stub's own parser of k3s's configuration is asked
@pytest.mark.timeout(600)
def test_two_hundred_configurations_are_taken_or_refused_in_a_sentence(running: Box) -> None:
    folder = Path(tempfile.mkdtemp(prefix="cases-"))
    try:
        (folder / "cases.json").write_text(json.dumps(CASES))
        running.docker.copy(folder / "cases.json", (running.name, "/tmp/cases.json"))
        running.docker.copy(DRIVER, (running.name, "/tmp/driver.py"))
    finally:
        shutil.rmtree(folder)
    outcomes = json.loads(running.do("python3", "-I", "-S", "/tmp/driver.py", "/tmp/cases.json"))
    assert len(CASES) == len(outcomes) == COUNT
    bad = [f"{case}\n{output}" for case, one in zip(CASES, outcomes, strict=True) if (output := wrong(case, one))]
    assert not bad, f"{len(bad)} of {COUNT}, the first: {bad[0]}"
    counts = Counter(outcome["code"] for outcome in outcomes)
    assert min(counts[0], counts[2]) > COUNT / 10, counts  # the cases say something about both


def startable(case: Case) -> bool:
    """What docker itself can hand over."""
    messages = len(case["env"]) + len(case["files"]) > 2
    return messages and all(text.isprintable() and len(text) < 1000 for text in case["env"].values())


@pytest.mark.parametrize("case", random.Random(11).sample([case for case in CASES if startable(case)], REAL))
def test_ten_of_them_in_containers(boxes: Callable[..., Box], tmp_path: Path, case: Case) -> None:
    made = boxes(
        environment=case["env"], command=case["extra"] if case["extra"][:1] != ["tcp://127.0.0.1:2375"] else ()
    )
    made.create()
    for name, text in case["files"].items():
        path = tmp_path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.mkdir()
        else:
            path.write_bytes(text.encode(errors="surrogateescape"))
    made.docker.copy(f"{tmp_path}/.", (made.name, "/"))
    made.start()
    stage = "docker" if case["env"].get("K3S_DISABLE", "").lower() not in ("", "0", "false", "no", "off") else "k8s"
    made.until("an end or readiness", lambda: not made.state()["running"] or is_ready(made, stage), 60)
    if not made.state()["running"]:
        assert made.state()["exit_code"] == 2, made.log()
        assert made.errors()
        assert all(named(case, f"dind-k3s: error: {line}") for line in made.errors())
    assert "Traceback" not in made.log()


def test_the_users_files_are_read_in_k3ss_own_order(boxes: Callable[..., Box], tmp_path: Path) -> None:
    made = boxes(environment={"PROFILE": "ci"})
    made.create()
    folder = tmp_path / "k3s/config.yaml.d"
    folder.mkdir(parents=True)
    for path, mode in {folder.parent / "config.yaml": "0604", folder / "10-mine.yaml": "0640"}.items():
        path.write_text(f"write-kubeconfig-mode: '{mode}'\n")
    made.docker.copy(tmp_path / "k3s", (made.name, "/app"))
    made.start()
    made.ready(limit=300)
    assert made.do("stat", "-c", "%a", "/app/k3s/k3s.yaml") == "640"
    made.shell("echo 'write-kubeconfig-mode: \"0644\"' >/app/k3s/config.yaml.d/20-more.yml; rm /app/k3s/k3s.yaml")
    made.do("supervisorctl", "restart", "k3s")
    made.until("the mode", lambda: made.do("stat", "-c", "%a", "/app/k3s/k3s.yaml") == "644", 120)


def test_a_tmpfs_that_docker_mounted_noexec_is_refused_before_k3s_dies_of_it(boxes: Callable[..., Box]) -> None:
    made = boxes(options={"tmpfs": ["/app/k3s"]})
    made.volumes = [(f"{made.name}-docker", "/var/lib/docker")]
    made.start()
    code, _ = made.ends()
    assert code == 2
    assert made.errors() == [
        "/app/k3s is mounted noexec, and k3s runs its programs from /app/k3s/data: mount it with exec. docker mounts"
        " a tmpfs noexec unless it is asked otherwise: --tmpfs /app/k3s:exec"
    ]


def test_a_flag_that_only_k3s_can_refuse_ends_the_container_with_its_words(boxes: Callable[..., Box]) -> None:
    made = boxes(environment={"K3S_ARGS": "--no-such-flag"})
    made.start()
    code, _ = made.ends(200)
    assert code == 3
    assert made.errors()[0].startswith("k3s could not be kept alive")
    assert "flag provided but not defined: -no-such-flag" in made.errors()[0]
    assert made.errors()[0].endswith("; is it K3S_ARGS?")


def is_ready(made: Box, stage: str) -> bool:
    return bool(made.do("wait-ready", "--for", stage, "--timeout", "1"))
