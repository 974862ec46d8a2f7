"""Whether an agent believes its server: CAs of k3s's own, and those of users, which are below a root."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

import pytest
from dind_k3s import join

from tests.helpers import servers
from tests.helpers.authorities import Authority, issue

OTHER = "the token is not for the server"
UNSIGNED = "is not signed by its own CA"


def serving(leaf: Authority, folder: Path) -> ssl.SSLContext:
    (folder / "serving.pem").write_bytes(leaf.secret + leaf.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "serving.pem")
    return context


def problem(folder: Path, leaf: Authority, bundle: bytes, digest: str) -> str:
    with servers.running(serving(leaf, folder)) as server:
        server.gives("/cacerts", bundle)
        server.gives("/v1-k3s/client-ca.crt", b"")
        return join.problem(server.url, f"K10{digest}::server:secret")


def test_a_single_ca_is_hashed_as_it_is(tmp_path: Path) -> None:
    ca = issue("k3s-server-ca@1")
    leaf = issue("k3s", ca, ca=False)
    assert problem(tmp_path, leaf, ca.pem, hashlib.sha256(ca.pem).hexdigest()) == ""
    assert OTHER in problem(tmp_path, leaf, ca.pem, issue("other").digest)


def test_a_ca_below_a_root_is_hashed_by_its_root(tmp_path: Path) -> None:
    root = issue("root")
    between = issue("between", root)
    ca = issue("server-ca", between)
    leaf = issue("k3s", ca, ca=False)
    bundle = ca.pem + between.pem + root.pem
    assert problem(tmp_path, leaf, bundle, root.digest) == ""
    assert OTHER in problem(tmp_path, leaf, bundle, issue("root").digest)


@pytest.mark.parametrize("more", [True, False])
def test_a_bundle_with_the_right_root_but_another_ca_is_not_believed(tmp_path: Path, more: bool) -> None:
    """Anybody can put a public root beside a CA of his own."""
    root = issue("root")
    ca = issue("server-ca", issue("root"))  # by a root of the same name
    alone = issue("alone")
    leaf = issue("k3s", alone if more else ca, ca=False)
    bundle = ca.pem + root.pem + (alone.pem if more else b"")
    assert UNSIGNED in problem(tmp_path, leaf, bundle, root.digest)
