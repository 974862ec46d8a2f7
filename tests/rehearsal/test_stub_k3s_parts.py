"""Units of the stub: configuration, store and watches, patches, selectors, pod status."""

from __future__ import annotations

from email.message import Message
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from pipeline.rehearsal.stub_k3s import (
    agents,
    certs,
    config,
    containers,
    engine,
    nodes,
    pods,
    rest,
    streams,
    table,
    watch,
)
from pipeline.rehearsal.stub_k3s.agents import Joining
from pipeline.rehearsal.stub_k3s.containers import Container
from pipeline.rehearsal.stub_k3s.errors import ApiError, Failure
from pipeline.rehearsal.stub_k3s.resources import RESOURCES
from pipeline.rehearsal.stub_k3s.store import Store
from pipeline.rehearsal.stub_k3s.watch import Selector


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("docker: true\r\n", {"docker": ["true"]}),
        ("# c\n---\nnode-name: a # why\n", {"node-name": ["a"]}),
        ("tls-san:\n  - a\n  - 'b c' # d\n", {"tls-san": ["a", "b c"]}),
        ('tls-san:\n- a\n- "b\\nc"\n', {"tls-san": ["a", "b\nc"]}),
        ("disable: [traefik, 'servicelb', \"x\"]\n", {"disable": ["traefik", "servicelb", "x"]}),
        ("disable: []\nempty:\n", {"disable": [], "empty": []}),
        ("kubelet-arg+: [a=b]\n", {"kubelet-arg+": ["a=b"]}),
        ("token: 'it is #1'\n", {"token": ["it is #1"]}),
        ('version: 1.30\nmode: "0644"\n', {"version": ["1.30"], "mode": ["0644"]}),
        ("url: http://a:80/b#c\n", {"url": ["http://a:80/b#c"]}),
    ],
)
def test_supported_yaml(text: str, values: dict[str, Any]) -> None:
    assert config.parse_file(text, "f") == values


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a:\n  b: c\n", 2),
        ("- a\n", 1),
        ("a: |\n  text\n", 1),
        ("a: {b: c}\n", 1),
        ("a: &x y\n", 1),
        ("a: 'open\n", 1),
        ("a: [b,\n", 1),
        ("a:\n\t- b\n", 2),
        ("a:\n- b: c\n", 2),
    ],
)
def test_unsupported_yaml_is_refused_with_file_and_line(text: str, line: int) -> None:
    with pytest.raises(Failure, match=rf"f.yaml, line {line}: expected `key: value`"):
        config.parse_file(text, "f.yaml")


def load(tmp_path: Path, *arguments: str, files: dict[str, str] | None = None, **environment: str) -> config.Config:
    for name, text in {"config.yaml": "docker: true\n", **(files or {})}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return config.load(["--config", str(tmp_path / "config.yaml"), *arguments], environment)


def test_command_line_overrides_file_and_file_overrides_environment(tmp_path: Path) -> None:
    files = {"config.yaml": "docker: true\nnode-name: file\ntls-san: [one]\n"}
    assert load(tmp_path, K3S_NODE_NAME="env").node_name != "file"
    assert load(tmp_path, files=files, K3S_NODE_NAME="env").node_name == "file"
    both = load(tmp_path, "--node-name=line", "--tls-san", "two", "--tls-san=three,four", files=files)
    assert both.node_name == "line"
    assert both.tls_sans == ("one", "two", "three", "four")


def test_fragments_replace_and_append_in_alphabetical_order(tmp_path: Path) -> None:
    files = {
        "config.yaml": "docker: true\ntls-san: [a]\nkubelet-arg: [image-gc-high-threshold=90]\n",
        "config.yaml.d/20.yaml": "tls-san+: [c]\n",
        "config.yaml.d/10.yaml": "tls-san: [b]\nkubelet-arg+: [system-reserved=cpu=1]\n",
        "config.yaml.d/ignored.txt": "not: {yaml}",
    }
    loaded = load(tmp_path, files=files)
    assert loaded.tls_sans == ("b", "c")
    assert loaded.kubelet["imageGCHighThresholdPercent"] == 90
    assert loaded.kubelet["systemReserved"] == {"cpu": "1"}


def test_unknown_key_of_a_file_is_skipped_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"config.yaml": "docker: true\ndisable: [traefik]\nno-such-key: 1\n"}
    load(tmp_path, "--flannel-backend", "host-gw", files=files)
    (warning,) = capsys.readouterr().err.splitlines()
    assert "level=warning" in warning
    assert "Unknown flag --no-such-key" in warning


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--nope"], "flag provided but not defined: -nope"),
        (["--node-name"], "needs an argument"),
        (["word"], "unexpected argument"),
        (["--docker=maybe"], "docker: true"),
        (["--docker=false"], "docker: true"),
        (["--https-listen-port=x"], "invalid value"),
        (["--write-kubeconfig-mode=9"], "invalid value"),
        (["--service-cidr=10.43.0.0/99"], "not a valid netmask"),
        (["--server=https://other", "--token=x"], "cannot join"),
        (["--node-ip=one"], "'one' does not appear to be an IPv4 or IPv6 address"),
        (["--token-file=/nonexistent"], "/nonexistent"),
    ],
)
def test_invalid_argument_is_an_error_message(tmp_path: Path, arguments: list[str], reason: str) -> None:
    with pytest.raises(Failure, match=reason):
        load(tmp_path, *arguments)


def thing(name: str, **labels: str) -> dict[str, Any]:
    return {"kind": "ConfigMap", "metadata": {"name": name, "namespace": "default", "labels": labels}}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    opened = Store(tmp_path / "state.db")
    yield opened
    opened.close()


def test_store_keeps_everything_without_close(store: Store, tmp_path: Path) -> None:
    made = store.create("configmaps", thing("a"))
    store.delete("configmaps", "default", store.create("configmaps", thing("b"))["metadata"]["name"])
    again = Store(tmp_path / "state.db")
    assert again.find("configmaps") == ([made], store.version)
    again.close()


def test_old_version_is_a_conflict_and_no_change_gives_no_version(store: Store) -> None:
    made = store.create("configmaps", thing("a"))
    changed = store.modify("configmaps", "default", "a", lambda old: {**old, "data": {"x": "y"}})
    assert changed["metadata"]["resourceVersion"] != made["metadata"]["resourceVersion"]
    with pytest.raises(ApiError) as caught:
        store.modify("configmaps", "default", "a", lambda _: {**made, "data": {}})
    assert caught.value.code == 409
    before = store.version
    store.modify("configmaps", "default", "a", lambda old: old)
    assert store.version == before
    with pytest.raises(ApiError, match="already exists"):
        store.create("configmaps", thing("a"))


def follow(store: Store, selector: Selector, **query: str) -> list[tuple[str, str]]:
    query = {"timeoutSeconds": "0.05", **query}
    events = watch.follow(store, RESOURCES["configmaps"], selector, query, lambda: True)
    return [(event["type"], event["object"].get("metadata", {}).get("name", "")) for event in events]


def test_watch_reports_the_changes_of_what_it_selects(store: Store) -> None:
    everything, chosen = Selector(namespace="default"), Selector(namespace="default", labels="app=x")
    start = str(store.version)
    store.create("configmaps", thing("a"))
    store.modify(
        "configmaps", "default", "a", lambda old: rest.patched(rest.MERGE, old, {"metadata": {"labels": {"app": "x"}}})
    )
    store.modify(
        "configmaps", "default", "a", lambda old: rest.patched(rest.MERGE, old, {"metadata": {"labels": {"app": "y"}}})
    )
    store.delete("configmaps", "default", "a")
    assert [kind for kind, _ in follow(store, everything, resourceVersion=start)] == [
        "ADDED",
        "MODIFIED",
        "MODIFIED",
        "DELETED",
    ]
    assert follow(store, chosen, resourceVersion=start) == [("MODIFIED", "a")]


def test_watch_begins_with_existing_objects_and_marks_their_end(store: Store) -> None:
    store.create("configmaps", thing("a"))
    asked = {"sendInitialEvents": "true", "allowWatchBookmarks": "true"}
    assert follow(store, Selector(namespace=None), **asked) == [("ADDED", "a"), ("BOOKMARK", "")]
    assert follow(store, Selector(namespace="other")) == []


def test_watch_from_before_a_restart_is_expired(store: Store, tmp_path: Path) -> None:
    start = str(store.version)
    store.create("configmaps", thing("a"))
    again = Store(tmp_path / "state.db")
    assert follow(again, Selector(namespace=None), resourceVersion=start) == [("ERROR", "")]
    assert follow(again, Selector(namespace=None), resourceVersion=str(again.version)) == []
    again.close()


@pytest.mark.parametrize(
    ("labels", "matches"),
    [
        ("app=x", True),
        ("app==x,tier=", True),
        ("app=x,tier=db", False),
    ],
)
def test_label_selectors(labels: str, matches: bool) -> None:
    assert Selector(namespace="default", labels=labels).matches(thing("a", app="x")) is matches


def test_field_selectors() -> None:
    assert Selector(namespace=None, fields="metadata.name=a").matches(thing("a"))
    assert not Selector(namespace=None, fields="metadata.name=b").matches(thing("a"))
    assert Selector(namespace=None, fields="status.phase=").matches(thing("a"))
    for labels in ("app in (x)", "app!=x"):
        with pytest.raises(ApiError, match="no selectors like"):
            Selector(namespace=None, labels=labels).matches(thing("a"))


def test_patches() -> None:
    old = {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}], "x": 1}}
    for kind in (rest.MERGE, rest.STRATEGIC):
        changed = rest.patched(kind, old, {"metadata": {"labels": {"a/b": "c"}}, "spec": {"x": None}})
        assert changed["metadata"] == {"name": "a", "labels": {"a/b": "c"}}
        assert changed["spec"] == {"containers": [{"name": "c"}]}
    assert rest.patched(rest.MERGE, old, {"spec": {"containers": []}})["spec"] == {"containers": [], "x": 1}
    assert old["metadata"] == {"name": "a"}
    with pytest.raises(ApiError, match="merges no lists of objects"):
        rest.patched(rest.STRATEGIC, old, {"spec": {"$setElementOrder/containers": [], "containers": [{"name": "d"}]}})
    with pytest.raises(ApiError, match="no patches of type"):
        rest.patched("application/apply-patch+yaml", old, {})


def test_invalid_objects_are_refused_with_a_reason(store: Store) -> None:
    rest.furnish(store, IPv4Network("10.9.0.0/28"), 6443)
    assert store.get("services", "default", "kubernetes")["spec"]["clusterIP"] == "10.9.0.1"
    kind = RESOURCES["pods"]
    for spec, code in (({}, 422), ({"containers": [{"name": "a"}]}, 422), ({"initContainers": [{}]}, 501)):
        with pytest.raises(ApiError) as caught:
            rest.create(store, kind, "default", {"metadata": {"name": "a"}, "spec": spec})
        assert caught.value.code == code
    with pytest.raises(ApiError, match=r"metadata\.name"):
        rest.create(store, kind, "default", {"spec": {"containers": [{"name": "a", "image": "i"}]}})
    rest.create(store, kind, "default", pod("Always", "a"))
    marked = rest.delete(store, "pods", "default", "p", {})
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 30
    rest.delete(store, "pods", "default", "p", {"gracePeriodSeconds": 0})
    assert store.find("pods")[0] == []


def container(state: str, *, attempt: int = 0, code: int = 0, error: str = "") -> Container:
    return Container(
        id="1",
        attempt=attempt,
        state=state,
        exit_code=code,
        error=error,
    )


def pod(policy: str, *names: str) -> dict[str, Any]:
    containers = [{"name": name, "image": "i:1"} for name in names]
    spec = {"restartPolicy": policy, "containers": containers, "nodeName": "node"}
    metadata = {"name": "p", "namespace": "default"}
    return {"kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}


@pytest.mark.parametrize(
    ("policy", "lasts", "phase", "reasons", "ready"),
    [
        ("Always", {}, "Pending", ["ContainerCreating", "ContainerCreating"], 0),
        ("Always", {"a": ("running", 0), "b": ("running", 0)}, "Running", [], 2),
        ("Always", {"a": ("running", 0), "b": ("exited", 1)}, "Running", ["Error"], 1),
        ("Never", {"a": ("exited", 0), "b": ("exited", 0)}, "Succeeded", ["Completed", "Completed"], 0),
        ("Never", {"a": ("exited", 0), "b": ("exited", 2)}, "Failed", ["Completed", "Error"], 0),
        ("Never", {"a": ("running", 0), "b": ("exited", 0)}, "Running", ["Completed"], 1),
        ("OnFailure", {"a": ("exited", 0), "b": ("exited", 2)}, "Running", ["Completed", "Error"], 0),
    ],
)
def test_phase_and_containers_of_a_pod(
    policy: str, lasts: dict[str, tuple[str, int]], phase: str, reasons: list[str], ready: int
) -> None:
    lasting = {name: container(state, code=code) for name, (state, code) in lasts.items()}
    status = pods.status(pod(policy, "a", "b"), lasting, {})
    assert status["phase"] == phase
    states = [state for one in status["containerStatuses"] for state in one["state"].values()]
    assert [state["reason"] for state in states if state] == reasons
    assert sum(one["ready"] for one in status["containerStatuses"]) == ready
    assert status["conditions"][0]["status"] == ("True" if ready == 2 else "False")


def test_table_of_nodes() -> None:
    server = node("s", **{"node-role.kubernetes.io/control-plane": "true"})
    server["status"]["nodeInfo"] = {"kubeletVersion": "v1"}
    rows = table.render("nodes", [server, node("a", ready="False")])["rows"]
    assert [row["cells"] for row in rows] == [
        ["s", "Ready", "control-plane", "v1"],
        ["a", "NotReady", "<none>", "<unknown>"],
    ]


def test_container_in_back_off_is_waiting_with_its_restart_count() -> None:
    waiting = {"a": {"reason": "CrashLoopBackOff", "message": "m"}}
    containers = {"a": container("exited", attempt=3, code=2)}
    [shown] = pods.status(pod("Always", "a"), containers, waiting)["containerStatuses"]
    assert shown["state"] == {"waiting": {"reason": "CrashLoopBackOff", "message": "m"}}
    assert shown["restartCount"] == 3


def test_container_that_dockerd_cannot_start_has_failed() -> None:
    containers = {"a": container("created", code=127, error="no such file")}
    status = pods.status(pod("Never", "a"), containers, {})
    assert status["phase"] == "Failed"
    assert status["containerStatuses"][0]["state"]["terminated"]["reason"] == "StartError"


def test_dockerds_frames_can_arrive_in_any_pieces() -> None:
    data = b"\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\x03err"
    whole = [(1, b"hi"), (2, b"err")]
    for cut in range(len(data)):
        assert list(engine.frames(iter([data[:cut], data[cut:]]))) == whole


def test_handshake_of_rfc_6455() -> None:
    assert streams.accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_nonzero_exit_code_is_a_status_for_kubectl() -> None:
    assert streams.final_status(0)["status"] == "Success"
    failure = streams.final_status(4)
    assert (failure["reason"], failure["details"]["causes"][0]["message"]) == ("NonZeroExitCode", "4")


def node(name: str, *, ready: str = "True", **labels: str) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready}]
    return {"metadata": {"name": name, "labels": labels}, "spec": {}, "status": {"conditions": conditions}}


def test_pods_are_scheduled_to_ready_nodes_with_their_labels(store: Store) -> None:
    for one in (node("own"), node("far", disk="fast"), node("down", ready="False", disk="fast")):
        store.create("nodes", one)
    store.create("nodes", {"metadata": {"name": "new"}, "spec": {}})  # an agent that has not reported yet
    for name, selector in (("a", {}), ("b", {}), ("c", {"disk": "fast"}), ("d", {"disk": "slow"})):
        spec = {"nodeSelector": selector}
        store.create("pods", {"metadata": {"name": name, "namespace": "default"}, "spec": spec, "status": {}})
    nodes.place(store, "own")
    placed = {pod["metadata"]["name"]: pod["spec"].get("nodeName") for pod in store.find("pods")[0]}
    assert placed == {"a": "own", "b": "own", "c": "far", "d": None}


def test_agent_needs_the_token_and_the_password_of_its_node(store: Store, tmp_path: Path) -> None:
    certificates = certs.ensure(tmp_path / "tls", ["DNS:localhost"])
    joined: list[tuple[str, str]] = []
    joining = Joining(store, certificates, "secret", lambda *node: joined.append(node))

    def ask(name: str, token: str, password: str = "mine") -> bytes:
        headers = Message()
        headers["Authorization"] = agents._basic(token)
        headers["k3s-Node-IP"] = "192.0.2.1"
        headers["k3s-Node-Name"] = "far"
        headers["k3s-Node-Password"] = password
        return joining.answer(f"/v1-k3s/{name}", headers)

    with pytest.raises(ApiError, match="Unauthorized"):
        ask("client-ca.crt", "guessed")
    assert ask("client-ca.crt", "secret") == certificates.client_ca.read_bytes()
    assert joined == []
    assert b"PRIVATE KEY" in ask("client-kubelet.crt", "secret")
    assert joined == [("far", "192.0.2.1")]
    store.create("nodes", {"metadata": {"name": "far"}})
    with pytest.raises(ApiError, match="Node password rejected"):
        ask("client-kubelet.crt", "secret", "another")
    store.delete("nodes", "", "far")
    assert ask("client-kubelet.crt", "secret", "another")
    assert ask("client-kubelet.crt", "secret", "another")


def test_pods_get_the_resolver_of_resolv_conf(tmp_path: Path) -> None:
    named = tmp_path / "named"
    named.write_text("nameserver 127.0.0.11\nsearch a b\noptions ndots:0\n")
    assert containers.resolver(named) == {"Dns": ["127.0.0.11"], "DnsSearch": ["a", "b"], "DnsOptions": ["ndots:0"]}
    named.write_text("nameserver 10.0.0.2\n")
    assert containers.resolver(named)["DnsSearch"] == ["."]
    with pytest.raises(Failure, match="--resolv-conf"):
        containers.resolver(tmp_path / "missing")
