"""The server: everything put together, from an empty folder to a node with pods, and to the signal that ends it."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from . import certs, containers, credentials, log, rest, schedule
from .api import Kubelet, Server
from .config import Config
from .deploy import Deployer
from .failure import Failure
from .joining import Joining
from .node import Node, own_address, own_addresses
from .pods import Machine, Pods
from .store import Store

KUBELET_SECONDS = 1.5  # it starts once the API server is ready


def run(config: Config) -> NoReturn:
    """Serve until SIGTERM or SIGINT; then leave at once with status 0, pods running, as k3s does."""
    try:
        server = prepare(config)
    except (OSError, sqlite3.Error) as error:
        raise Failure(f"cannot prepare {config.data_dir}: {error}") from None
    store = server.store
    in_background("api", server.serve_forever)
    in_background("scheduler", lambda: schedule.run(store, config.node_name))
    in_background("deploy", Deployer(config, store).run)
    log.say(f"the API listens on {config.bind_address}:{config.port}, the kubeconfig is {config.kubeconfig}")
    in_background("node", lambda: _start_node(config, server))
    until_stopped()
    store.close()
    leave()


def prepare(config: Config) -> Server:
    """Make every file and the objects that a cluster has from its start."""
    (config.data_dir / "server").mkdir(parents=True, exist_ok=True)
    addresses = [*own_addresses(), *([config.node_ip] if config.node_ip else []), str(config.service_cidr[1])]
    sans = certs.names(config.node_name, [*addresses, *config.tls_sans])
    certificates = certs.ensure(config.data_dir / "server/tls", sans)
    token = credentials.ensure_token(config, certificates)
    credentials.ensure_node_password(config)
    store = Store(config.data_dir / "server/db/state.db")
    server = Server((config.bind_address, config.port), certificates, store, Joining(store, certificates, token))
    server.kubelet = config.kubelet
    rest.furnish(store, config.service_cidr, config.port)
    credentials.write_kubeconfig(config, certificates)
    return server


def _start_node(config: Config, server: Server) -> None:
    start_kubelet(config)
    store, certificates = server.store, server.certificates
    address = config.node_ip or own_address()
    client = certs.for_node(certificates.client_ca, config.node_name)
    api = credentials.url("127.0.0.1", config.port)
    credentials.write_kubelet_kubeconfig(config, client, ca=certificates.server_ca, server=api)
    node = register_node(config, store, address, is_agent=False)
    server.node_name, server.engine = config.node_name, node.engine
    start_pods(node, config, store)
    in_background("listener", Kubelet(config.bind_address, certificates, store, node.engine).serve_forever)
    server.ready = True
    log.say(f"node {config.node_name} is registered with {address}")


def start_kubelet(config: Config) -> None:
    """End the whole process, seconds after its start, if kubelet refuses its configuration."""
    if config.kubelet_refusal:
        time.sleep(KUBELET_SECONDS)
        shut_down(f"kubelet exited: {config.kubelet_refusal}")


def register_node(config: Config, store: Store, address: str, *, is_agent: bool) -> Node:
    """Wait for dockerd, then make this node known to the cluster; without dockerd, end the whole process."""
    node = Node(config, store, address, is_agent=is_agent)
    if not node.wait_for_engine():
        shut_down(f"failed to start container runtime: dockerd does not answer on {config.docker_socket}")
    node.register()
    return node


def start_pods(node: Node, config: Config, store: Store) -> None:
    """Let pods run on a registered node."""
    machine = Machine(
        store=store,
        engine=node.engine,
        node_name=config.node_name,
        kubelet_dir=config.kubelet_dir,
        resolver=containers.resolver(config.resolv_conf) if config.resolv_conf else {},
    )
    pods = Pods(machine)
    in_background("kubelet", pods.follow)
    in_background("engine", lambda: node.follow(pods))


def in_background(name: str, work: Callable[[], object]) -> None:
    """Run work in a thread; when it fails by a bug, the process ends with it rather than limp on."""

    def guarded() -> None:
        try:
            work()
        except Exception:
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=guarded, name=name, daemon=True).start()


def until_stopped() -> None:
    """Wait for SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    log.say("stopped by a signal; pods stay as they are")


def shut_down(reason: str) -> NoReturn:
    """End because a component failed (k3s: pkg/signals.RequestShutdown): with 0, like an end that was asked for."""
    log.say(f'Shutdown request received: "{reason}"', level="error")
    leave()


def leave() -> NoReturn:
    """End without waiting for any thread: what matters is in the store, and dockerd keeps the pods."""
    os._exit(0)
