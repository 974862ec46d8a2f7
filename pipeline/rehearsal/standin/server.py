"""The server: everything put together, from an empty folder to a node with pods, and to the signal that ends it."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from . import certs, credentials, kubelet, log, namespaces, resolver
from .about import PLATFORM, VERSION
from .admission import Admission
from .api import Server
from .config import Config
from .deploy import Deployer
from .engine import Engine
from .failure import Failure
from .forward import KUBELET_PORT
from .joining import Joining
from .logs import Logs
from .node import Node, own_address, own_addresses
from .pods import Kubelet
from .rest import Rest
from .schedule import Scheduler
from .status import ApiError, Object
from .store import Store
from .streams import Streams

KUBELET_SECONDS = 1.5  # it starts once the API server is ready


def run(config: Config) -> int:
    """Serve until SIGTERM or SIGINT; then leave at once with status 0, pods running, as k3s does."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log.say(f"this is a stand-in for rehearsals, not k3s: {VERSION} for {PLATFORM}, pods are containers of dockerd")
    for warning in config.warnings:
        log.warn(warning)
    log.say("services get an address and are not routed; there is no DNS, ingress, storage class or metrics server")
    try:
        server, store = prepare(config)
    except (OSError, sqlite3.Error) as error:
        raise Failure(f"cannot prepare {config.data_dir}: {error}") from None
    in_background("api", server.serve_forever)
    in_background("scheduler", Scheduler(store, config.node_name if config.agent else "").run)
    in_background("deploy", Deployer(config, store).run)
    log.say(f"the API listens on {config.bind_address}:{config.port}, the kubeconfig is {config.kubeconfig}")
    if config.agent:
        in_background("node", lambda: _start_node(config, server, store))
    else:
        log.say("--disable-agent: a control plane without a node, so pods are stored and never run")
        namespaces.Reaper(store).start()
        server.ready = True
    stop.wait()
    log.say("stopped by a signal; pods stay as they are")
    store.close()
    leave()


def prepare(config: Config) -> tuple[Server, Store]:
    """Make every file and the objects that a cluster has from its start."""
    (config.data_dir / "server").mkdir(parents=True, exist_ok=True)
    addresses = [*own_addresses(), *([config.node_ip] if config.node_ip else []), str(config.service_cidr[1])]
    sans = certs.names(config.node_name, addresses, config.tls_sans)
    certificates = certs.ensure(config.data_dir / "server/tls", sans)
    token = credentials.ensure_token(config, certificates)
    credentials.ensure_node_password(config)
    store = Store(config.data_dir / "server/db/state.db")
    ca = certificates.server_ca.read_text(encoding="ascii")
    rest = Rest(store, Admission(store, service_cidr=config.service_cidr), ca)
    server = Server(config.bind_address, config.port, certificates, token, rest, node_name=config.node_name)
    server.joining = Joining(store, certificates, token)
    server.kubelet = config.kubelet
    furnish(config, store, ca)
    credentials.write_kubeconfig(config, certificates)
    return server, store


def furnish(config: Config, store: Store, ca: str) -> None:
    """Create the first namespaces and the API's own service."""
    for name in namespaces.INITIAL:
        metadata: Object = {"name": name, "labels": {"kubernetes.io/metadata.name": name}}
        spec = {"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
        _create(store, "namespaces", {"kind": "Namespace", "metadata": metadata, **spec})
        namespaces.furnish(store, name, ca)
    address = str(config.service_cidr[1])
    metadata = {
        "name": "kubernetes",
        "namespace": "default",
        "labels": {"component": "apiserver", "provider": "kubernetes"},
    }
    port = {"name": "https", "protocol": "TCP", "port": 443, "targetPort": config.port}
    spec = {"spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": [port]}}
    _create(store, "services", {"kind": "Service", "metadata": metadata, **spec, "status": {"loadBalancer": {}}})


def _create(store: Store, plural: str, thing: Object) -> None:
    try:
        store.create(plural, {"apiVersion": "v1", **thing})
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise


def _start_node(config: Config, server: Server, store: Store) -> None:
    start_kubelet(config)
    address = config.node_ip or own_address()
    made = certs.Certificates(folder=config.data_dir / "server/tls")
    made.for_node(config.node_name, address, serving=False)
    client = made.of_node(config.node_name, serving=False)
    credentials.write_kubelet_kubeconfig(config, client, ca=made.server_ca, server=f"127.0.0.1:{config.port}")
    start_pods(register_node(config, store, address), config, store, address, server)
    listener = Server(
        config.bind_address, KUBELET_PORT, made, "", server.rest, node_name=config.node_name, kubelet_only=True
    )
    listener.pod_handlers = server.pod_handlers
    in_background("listener", listener.serve_forever)
    namespaces.Reaper(store).start()
    server.ready = True
    log.say(f"node {config.node_name} is registered with {address}")


def start_kubelet(config: Config) -> None:
    """End the whole process, seconds after its start, if kubelet refuses its configuration or this host."""
    if refusal := config.kubelet_refusal or kubelet.refusal(config.kubelet):
        time.sleep(KUBELET_SECONDS)
        shut_down(f"kubelet exited: {refusal}")


def register_node(config: Config, store: Store, address: str, *, is_agent: bool = False) -> Node:
    """Wait for dockerd, then tell the cluster of this node; without dockerd, end the whole process."""
    node = Node(config, store, Engine(config.docker_socket), address, is_agent=is_agent)
    if not node.wait_for_engine():
        shut_down(f"failed to start container runtime: dockerd does not answer on {config.docker_socket}")
    node.register()
    return node


def start_pods(node: Node, config: Config, store: Store, address: str, listener: Server) -> None:
    """Let pods run on a registered node; `listener` is asked for their logs and streams."""
    engine = node.engine
    pods = Kubelet(
        store,
        engine,
        node_name=config.node_name,
        node_ip=address,
        kubelet_dir=config.kubelet_dir,
        resolver=resolver.read(config.resolv_conf),
    )
    streams = Streams(engine)
    listener.pod_handlers.update(log=Logs(engine), exec=streams.exec, attach=streams.attach)
    for name, work in (
        ("kubelet", pods.follow),
        ("engine", lambda: node.follow(pods)),
        ("pulse", node.watch_pulse),
    ):
        in_background(name, work)


def in_background(name: str, work: Callable[[], object]) -> None:
    """Run work that must not end; when it does by a bug, the process ends with it rather than limp on."""

    def guarded() -> None:
        try:
            work()
        except Exception as error:
            import traceback

            traceback.print_exc()
            log.warn(f"{name} ended in an error of the stand-in itself: {error!r}")
            os._exit(1)

    threading.Thread(target=guarded, name=name, daemon=True).start()


def shut_down(reason: str) -> NoReturn:
    """End because a component failed (k3s: pkg/signals.RequestShutdown): with 0, like an end that was asked for."""
    log.say(f'Shutdown request received: "{reason}"', level="error")
    leave()


def leave() -> NoReturn:
    """End without waiting for any thread: what matters is in the store, and dockerd keeps the pods."""
    os._exit(0)
