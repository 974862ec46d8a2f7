"""`k3s server`: from an empty folder to a node with pods, until a signal ends it."""

from __future__ import annotations

import sqlite3
from typing import NoReturn

from . import certs, credentials, deploy, nodes, rest
from .agents import Joining
from .api import Server
from .config import Config
from .errors import Failure
from .node import start_kubelet
from .process import in_background, leave, say, until_stopped
from .store import Store
from .tunnel import Tunnel


def run(config: Config) -> NoReturn:
    """Serve until SIGTERM or SIGINT; then end at once with status 0, pods running, as k3s does."""
    try:
        server = prepare(config)
    except (OSError, sqlite3.Error) as error:
        raise Failure(f"cannot prepare {config.data_dir}: {error}") from None
    store = server.store
    in_background("api", server.serve_forever)
    in_background("scheduler", lambda: nodes.schedule(store, config.node_name))
    in_background("deploy", lambda: deploy.run(config, store))
    say(f"the API listens on {config.bind_address}:{config.port}, the kubeconfig is {config.kubeconfig}")
    in_background("node", lambda: _start_node(config, server))
    until_stopped()
    store.close()
    leave()


def prepare(config: Config) -> Server:
    """Make all files, and the objects of a new cluster."""
    (config.data_dir / "server").mkdir(parents=True, exist_ok=True)
    addresses = [*nodes.own_addresses(), *([config.node_ip] if config.node_ip else []), str(config.service_cidr[1])]
    sans = certs.names(config.node_name, [*addresses, *config.tls_sans])
    certificates = certs.ensure(config.data_dir / "server/tls", sans)
    token = credentials.ensure_token(config, certificates)
    credentials.ensure_node_password(config)
    store = Store(config.data_dir / "server/db/state.db")
    known = nodes.Nodes(store, certificates)
    joining = Joining(store, certificates, token, known.join)
    server = Server((config.bind_address, config.port), certificates, store, joining, known)
    server.kubelet = config.kubelet
    rest.furnish(store, config.service_cidr, config.port)
    credentials.write_kubeconfig(config, certificates)
    return server


def _start_node(config: Config, server: Server) -> None:
    engine = start_kubelet(config)
    certificates = server.certificates
    client = certs.for_node(certificates.client_ca, config.node_name)
    api = credentials.url("127.0.0.1", config.port)
    credentials.write_kubelet_kubeconfig(config, client, ca=certificates.server_ca, server=api)
    server.nodes.start_own(config, engine, config.node_ip or nodes.own_address())
    in_background("kubelet's port", Tunnel(config.bind_address, certificates, config.docker_socket).serve_forever)
    server.ready = True
    say("Node controller sync successful")  # flannel's line, for which Testcontainers waits
