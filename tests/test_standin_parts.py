"""The stand-in's parts by themselves: configuration, store and watches, patches, selectors, tables, pod status."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from email.message import Message
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from pipeline.rehearsal.standin import (
    admission,
    certs,
    config,
    engine,
    miniyaml,
    patch,
    podstatus,
    resolver,
    table,
    watch,
    websocket,
)
from pipeline.rehearsal.standin.containers import Container
from pipeline.rehearsal.standin.failure import Failure
from pipeline.rehearsal.standin.joining import Joining
from pipeline.rehearsal.standin.podstatus import View, Waiting
from pipeline.rehearsal.standin.resources import RESOURCES
from pipeline.rehearsal.standin.schedule import Scheduler
from pipeline.rehearsal.standin.selectors import Selector
from pipeline.rehearsal.standin.status import ApiError
from pipeline.rehearsal.standin.store import Store


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("docker: true\n", {"docker": "true"}),
        ("# c\n---\nnode-name: a # why\n", {"node-name": "a"}),
        ("tls-san:\n  - a\n  - 'b c' # d\n", {"tls-san": ["a", "b c"]}),
        ('tls-san:\n- a\n- "b\\nc"\n', {"tls-san": ["a", "b\nc"]}),
        ("disable: [traefik, 'serv,icelb', \"x\"]\n", {"disable": ["traefik", "serv,icelb", "x"]}),
        ("disable: []\nempty:\n", {"disable": [], "empty": ""}),
        ("kubelet-arg+: [a=b]\n", {"kubelet-arg+": ["a=b"]}),
        ("token: 'it''s#1'\n", {"token": "it's#1"}),
        ('version: 1.30\nmode: "0644"\n', {"version": "1.30", "mode": "0644"}),
        ("url: http://a:80/b#c\n", {"url": "http://a:80/b#c"}),
    ],
)
def test_yaml_that_it_reads(text: str, values: dict[str, Any]) -> None:
    assert miniyaml.parse(text, "f") == values


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\na: 2\n", 2, "twice"),
        ("a:\n  b: c\n", 2, "key: value"),
        ("- a\n", 1, "belongs to no key"),
        ("a: b\n- c\n", 2, "belongs to no key"),
        ("a: |\n  text\n", 1, "the stand-in reads only"),
        ("a: {b: c}\n", 1, "the stand-in reads only"),
        ("a: &x y\n", 1, "the stand-in reads only"),
        ("a: 'open\n", 1, "quotes"),
        ("a: [b,\n", 1, "same line"),
        ("a:\n\t- b\n", 2, "tabs"),
        ("a:\n- b: c\n", 2, "the stand-in reads only"),
    ],
)
def test_yaml_that_it_refuses_with_file_and_line(text: str, line: int, said: str) -> None:
    with pytest.raises(Failure) as caught:
        miniyaml.parse(text, "f.yaml")
    assert f"f.yaml, line {line}: " in str(caught.value)
    assert said in str(caught.value)


def load(tmp_path: Path, *arguments: str, files: dict[str, str] | None = None, **environment: str) -> config.Config:
    for name, text in {"config.yaml": "docker: true\n", **(files or {})}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return config.load(["--config", str(tmp_path / "config.yaml"), *arguments], environment)


def test_the_command_line_beats_the_file_which_beats_the_environment(tmp_path: Path) -> None:
    files = {"config.yaml": "docker: true\nnode-name: file\ntls-san: [one]\n"}
    assert load(tmp_path, K3S_NODE_NAME="env").node_name != "file"
    assert load(tmp_path, files=files, K3S_NODE_NAME="env").node_name == "file"
    both = load(tmp_path, "--node-name=line", "--tls-san", "two", "--tls-san=three,four", files=files)
    assert both.node_name == "line"
    assert both.tls_sans == ("one", "two", "three", "four")


def test_fragments_replace_and_append_in_the_order_of_their_names(tmp_path: Path) -> None:
    files = {
        "config.yaml": "docker: true\ntls-san: [a]\nnode-label: [x=1]\n",
        "config.yaml.d/20.yaml": "tls-san+: [c]\n",
        "config.yaml.d/10.yaml": "tls-san: [b]\nnode-label+: [y=2]\n",
        "config.yaml.d/ignored.txt": "not: {yaml}",
    }
    loaded = load(tmp_path, files=files)
    assert loaded.tls_sans == ("b", "c")
    assert loaded.node_labels == {"x": "1", "y": "2"}


def test_what_k3s_knows_is_accepted_and_what_it_does_not_know_is_skipped_in_files(tmp_path: Path) -> None:
    files = {"config.yaml": "docker: true\ndisable: [traefik]\nno-such-key: 1\n"}
    warnings = " ".join(load(tmp_path, "--flannel-backend", "host-gw", files=files).warnings)
    assert "--disable" in warnings
    assert "--flannel-backend" in warnings
    assert "Unknown flag --no-such-key" in warnings


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nope"], "flag provided but not defined: -nope"),
        (["--node-name"], "needs an argument"),
        (["word"], "unexpected argument"),
        (["--docker=maybe"], "true or false"),
        (["--docker=false"], "docker: true"),
        (["--https-listen-port=x"], "port"),
        (["--write-kubeconfig-mode=9"], "octal"),
        (["--service-cidr=10.43.0.0/99"], "service-cidr"),
        (["--server=https://other"], "cannot join"),
        (["--node-ip=one"], "not an IP address"),
        (["--token-file=/nonexistent"], "/nonexistent"),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(Failure, match=said):
        load(tmp_path, *arguments)


def thing(name: str, **labels: str) -> dict[str, Any]:
    return {"kind": "ConfigMap", "metadata": {"name": name, "namespace": "default", "labels": labels}}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    opened = Store(tmp_path / "state.db")
    yield opened
    opened.close()


def test_the_store_keeps_everything_without_being_closed(store: Store, tmp_path: Path) -> None:
    made = store.create("configmaps", thing("a"))
    store.delete("configmaps", "default", store.create("configmaps", thing("b"))["metadata"]["name"])
    again = Store(tmp_path / "state.db")
    assert again.find("configmaps") == ([made], store.version)
    again.close()


def test_an_old_version_is_a_conflict_and_no_change_is_no_version(store: Store) -> None:
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
    events = watch.follow(store, "configmaps", "ConfigMap", selector, query, lambda: True)
    return [(event["type"], event["object"].get("metadata", {}).get("name", "")) for event in events]


def test_a_watch_sees_objects_enter_and_leave_its_selection(store: Store) -> None:
    everything, chosen = Selector(namespace="default"), Selector(namespace="default", labels="app=x")
    start = str(store.version)
    store.create("configmaps", thing("a"))
    store.modify(
        "configmaps", "default", "a", lambda old: patch.apply(patch.MERGE, old, {"metadata": {"labels": {"app": "x"}}})
    )
    store.modify(
        "configmaps", "default", "a", lambda old: patch.apply(patch.MERGE, old, {"metadata": {"labels": {"app": "y"}}})
    )
    store.delete("configmaps", "default", "a")
    assert [kind for kind, _ in follow(store, everything, resourceVersion=start)] == [
        "ADDED",
        "MODIFIED",
        "MODIFIED",
        "DELETED",
    ]
    assert follow(store, chosen, resourceVersion=start) == [("ADDED", "a"), ("DELETED", "a")]


def test_a_watch_begins_with_what_is_there_and_says_where_that_ends(store: Store) -> None:
    store.create("configmaps", thing("a"))
    asked = {"sendInitialEvents": "true", "allowWatchBookmarks": "true"}
    assert follow(store, Selector(namespace=None), **asked) == [("ADDED", "a"), ("BOOKMARK", "")]
    assert follow(store, Selector(namespace="other")) == []


def test_a_watch_from_before_a_restart_is_expired(store: Store, tmp_path: Path) -> None:
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
        ("app==x,tier!=db", True),
        ("app in (y, x)", True),
        ("app notin (x)", False),
        ("app", True),
        ("!app", False),
        ("other", False),
        ("app=x,other", False),
    ],
)
def test_label_selectors(labels: str, matches: bool) -> None:
    assert Selector(namespace="default", labels=labels).matches(thing("a", app="x")) is matches


def test_field_selectors() -> None:
    assert Selector(namespace=None, fields="metadata.name=a").matches(thing("a"))
    assert not Selector(namespace=None, fields="metadata.name!=a").matches(thing("a"))
    assert Selector(namespace=None, fields="status.phase=").matches(thing("a"))


def test_patches() -> None:
    old = {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d"}]}}
    merged = patch.apply(patch.STRATEGIC, old, {"spec": {"containers": [{"name": "c", "image": "j"}]}})
    assert merged["spec"]["containers"] == [{"name": "c", "image": "j"}, {"name": "d"}]
    gone = {"spec": {"$setElementOrder/containers": [], "containers": [{"name": "d", "$patch": "delete"}]}}
    assert patch.apply(patch.STRATEGIC, old, gone)["spec"]["containers"] == [{"name": "c", "image": "i"}]
    assert patch.apply(patch.MERGE, old, {"spec": {"containers": [], "x": None}})["spec"] == {"containers": []}
    steps = [
        {"op": "add", "path": "/metadata/labels", "value": {}},
        {"op": "add", "path": "/metadata/labels/a~1b", "value": "c"},
    ]
    assert patch.apply(patch.JSON, old, steps)["metadata"]["labels"] == {"a/b": "c"}
    assert old["metadata"] == {"name": "a"}
    with pytest.raises(ApiError, match="no patches of type"):
        patch.apply("application/apply-patch+yaml", old, {})


def test_services_get_addresses_of_their_own_and_bad_objects_a_reason(store: Store) -> None:
    store.create("namespaces", {"metadata": {"name": "default"}})
    entry = admission.Admission(store, service_cidr=IPv4Network("10.9.0.0/28"))
    services = RESOURCES["services"]
    found = []
    for name in ("a", "b"):
        ready, warnings = entry.create(
            services, "default", {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}
        )
        assert "does not route" in warnings[0]
        found.append(store.create("services", ready)["spec"]["clusterIP"])
    assert found == ["10.9.0.2", "10.9.0.3"]
    for bad in ({"metadata": {"name": "Bad_Name"}}, {"metadata": {"name": "c"}, "spec": {}}):
        with pytest.raises(ApiError) as caught:
            entry.create(services, "default", bad)
        assert caught.value.code == 422


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5, "5s"),
        (119, "119s"),
        (125, "2m5s"),
        (700, "11m"),
        (10800, "3h"),
        (11100, "3h5m"),
        (90000, "25h"),
        (200000, "2d7h"),
    ],
)
def test_durations(seconds: int, text: str) -> None:
    assert table.duration(seconds) == text


def container(name: str, state: str, *, attempt: int = 0, code: int = 0, error: str = "") -> Container:
    return Container(
        id=f"{name}{attempt}",
        name=name,
        attempt=attempt,
        state=state,
        exit_code=code,
        out_of_memory=False,
        error=error,
        started="2026-01-01T00:00:00Z",
        finished="2026-01-01T00:00:01Z",
        image_id="sha256:1",
        address="10.0.0.2",
        tty=False,
    )


def pod(policy: str, *names: str) -> dict[str, Any]:
    made = (datetime.now(UTC) - timedelta(seconds=200)).strftime("%Y-%m-%dT%H:%M:%SZ")
    containers = [{"name": name, "image": "i:1"} for name in names]
    spec = {"restartPolicy": policy, "containers": containers, "nodeName": "node"}
    return {"metadata": {"name": "p", "namespace": "default", "uid": "u", "creationTimestamp": made}, "spec": spec}


@pytest.mark.parametrize(
    ("policy", "lasts", "phase", "column", "ready"),
    [
        ("Always", {}, "Pending", "ContainerCreating", "0/2"),
        ("Always", {"a": ("running", 0), "b": ("running", 0)}, "Running", "Running", "2/2"),
        ("Always", {"a": ("running", 0), "b": ("exited", 1)}, "Running", "Error", "1/2"),
        ("Never", {"a": ("exited", 0), "b": ("exited", 0)}, "Succeeded", "Completed", "0/2"),
        ("Never", {"a": ("exited", 0), "b": ("exited", 2)}, "Failed", "Completed", "0/2"),
        ("Never", {"a": ("running", 0), "b": ("exited", 0)}, "Running", "NotReady", "1/2"),
        ("OnFailure", {"a": ("exited", 0), "b": ("exited", 2)}, "Running", "Completed", "0/2"),
    ],
)
def test_phase_and_columns_of_a_pod(
    policy: str, lasts: dict[str, tuple[str, int]], phase: str, column: str, ready: str
) -> None:
    view = View(attempts={name: [container(name, state, code=code)] for name, (state, code) in lasts.items()})
    subject = pod(policy, "a", "b")
    subject["status"] = podstatus.status(subject, view, "192.0.2.1")
    assert subject["status"]["phase"] == phase
    cells = table.render("pods", [subject], "1", "Metadata")["rows"][0]["cells"]
    assert cells[:5] == ["p", ready, column, "0", "3m20s"]


def test_a_container_in_its_pause_waits_and_shows_its_past() -> None:
    attempts = [container("a", "exited", attempt=3, code=2)]
    view = View(attempts={"a": attempts}, waiting={"a": Waiting(reason="CrashLoopBackOff", message="m")})
    [shown] = podstatus.status(pod("Always", "a"), view, "192.0.2.1")["containerStatuses"]
    assert shown["state"] == {"waiting": {"reason": "CrashLoopBackOff", "message": "m"}}
    assert shown["lastState"]["terminated"]["exitCode"] == 2
    assert shown["restartCount"] == 3


def test_what_dockerd_cannot_start_has_failed() -> None:
    view = View(attempts={"a": [container("a", "created", code=127, error="no such file")]})
    status = podstatus.status(pod("Never", "a"), view, "192.0.2.1")
    assert status["phase"] == "Failed"
    assert status["containerStatuses"][0]["state"]["terminated"]["reason"] == "StartError"


@pytest.mark.parametrize(
    ("oldest", "newest", "chosen"), [("1.24", "1.51", "1.44"), ("1.12", "1.43", "1.43"), ("1.50", "1.60", "1.50")]
)
def test_the_api_version_that_both_sides_know(oldest: str, newest: str, chosen: str) -> None:
    assert engine.choose_version(oldest, newest) == chosen


def test_frames_of_dockerd_may_come_in_any_pieces() -> None:
    data = b"\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\x03err"
    whole = [(1, b"hi"), (2, b"err")]
    for cut in range(len(data)):
        assert list(engine.frames(iter([data[:cut], data[cut:]]))) == whole


def test_the_handshake_of_rfc_6455() -> None:
    assert websocket.accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def node(name: str, *, ready: str = "True", heard: str = "2999-01-01T00:00:00Z", **labels: str) -> dict[str, Any]:
    condition = {"type": "Ready", "status": ready, "lastHeartbeatTime": heard}
    return {"metadata": {"name": name, "labels": labels}, "spec": {}, "status": {"conditions": [condition]}}


def test_pods_go_to_ready_nodes_with_their_labels_and_silent_nodes_are_not_ready(store: Store) -> None:
    for one in (node("own"), node("far", disk="fast"), node("down", ready="False", disk="fast")):
        store.create("nodes", one)
    store.create("nodes", {"metadata": {"name": "new"}, "spec": {}})  # an agent that has told nothing yet
    for name, selector in (("a", {}), ("b", {}), ("c", {"disk": "fast"}), ("d", {"disk": "slow"})):
        spec = {"nodeSelector": selector}
        store.create("pods", {"metadata": {"name": name, "namespace": "default"}, "spec": spec, "status": {}})
    scheduler = Scheduler(store, "own")
    scheduler.look()
    placed = {pod["metadata"]["name"]: pod["spec"].get("nodeName") for pod in store.find("pods")[0]}
    assert placed == {"a": "own", "b": "far", "c": "far", "d": None}
    why = store.get("pods", "default", "d")["status"]["conditions"][0]
    assert (why["reason"], why["message"][:27]) == ("Unschedulable", "0/4 nodes are available: no")
    silent = {"type": "Ready", "status": "True", "lastHeartbeatTime": "2000-01-01T00:00:00Z"}
    store.modify("nodes", "", "far", lambda old: {**old, "status": {"conditions": [silent]}})
    scheduler.look()
    assert store.get("nodes", "", "far")["status"]["conditions"][0]["status"] == "Unknown"


def test_an_agent_needs_the_token_and_keeps_its_password(store: Store, tmp_path: Path) -> None:
    store.create("namespaces", {"metadata": {"name": "kube-system"}})
    certificates = certs.ensure(tmp_path / "tls", ["DNS:localhost"])
    joining = Joining(store, certificates, "secret")

    def ask(name: str, token: str, password: str = "mine") -> bytes:
        headers = Message()
        headers["Authorization"] = "Basic " + base64.b64encode(f"node:{token}".encode()).decode()
        headers["k3s-Node-Name"] = "far"
        headers["k3s-Node-Password"] = password
        return joining.answer(f"/v1-k3s/{name}", headers)

    with pytest.raises(ApiError, match="Unauthorized"):
        ask("client-ca.crt", "guessed")
    assert ask("client-ca.crt", "secret") == certificates.client_ca.read_bytes()
    assert b"PRIVATE KEY" in ask("client-kubelet.crt", "secret")
    store.create("nodes", {"metadata": {"name": "far"}})
    with pytest.raises(ApiError, match="Node password rejected"):
        ask("client-kubelet.crt", "secret", "another")
    store.delete("nodes", "", "far")
    assert ask("client-kubelet.crt", "secret", "another")
    assert ask("client-kubelet.crt", "secret", "another")


def test_pods_get_the_resolver_that_k3s_would_give_them(tmp_path: Path) -> None:
    named, found = tmp_path / "named", tmp_path / "found"
    named.write_text("nameserver 127.0.0.11\nsearch a b\noptions ndots:0\n")
    assert resolver.read(named) == resolver.Resolver(servers=["127.0.0.11"], search=["a", "b"], options=["ndots:0"])
    found.write_text("nameserver 10.0.0.2\n")
    assert resolver.read(None, [found]).servers == ["10.0.0.2"]
    for unreachable in ("127.0.0.11", "169.254.169.253", "none"):
        found.write_text(f"nameserver 10.0.0.2\nnameserver {unreachable}\n")
        assert resolver.read(None, [found]) == resolver.PUBLIC
    with pytest.raises(Failure, match="--resolv-conf"):
        resolver.read(tmp_path / "missing")
