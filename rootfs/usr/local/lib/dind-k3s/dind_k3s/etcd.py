"""etcd k3s ARGUMENTS…: first make k3s's embedded etcd of what `restore` left, then run k3s.

etcd answers JSON on a port of the loopback interface (etcd.io/docs, gRPC gateway), and its port for peers lists the
members without a majority, too. Both want certificates, which k3s keeps in server/tls/etcd.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from dind_k3s import volume
from dind_k3s.http_api import Connection
from dind_k3s.plan import Mistake
from dind_k3s.trust import trusting

PATIENCE = 5.0  # seconds for an answer; etcd hangs while it has no leader
DONE = b"cluster membership has been reset"  # k3s's words; its status is 0 after failures, too

Member = dict[str, Any]  # id, name, peerURLs, clientURLs


class NotMoved(OSError):
    """A member whose new address etcd does not take; `members` are all of them where there are several."""

    def __init__(self, url: str, members: str) -> None:
        super().__init__(f"etcd does not take {url}")
        self.url, self.members = url, members


class Etcd:
    """The etcd in the k3s of this container. Methods raise OSError while it does not answer."""

    def __init__(self) -> None:
        self._folder = volume.k3s_folder() / volume.ETCD
        self._tls = volume.k3s_folder() / "server/tls/etcd"

    def _setting(self, name: str) -> list[str]:
        """URLs in the configuration that k3s writes at each start."""
        found = re.search(rf"^{name}: *(\S+)$", (self._folder / "config").read_text(), re.MULTILINE)
        return found[1].split(",") if found else []

    def _connect(self, urls: list[str], certificate: str, authority: str) -> Connection:
        address = re.fullmatch(r"https://\[?([^]]+)\]?:(\d+)", urls[0] if urls else "")
        if address is None:
            raise OSError(f"{self._folder}/config names no address of etcd")
        context = trusting((self._tls / authority).read_text())
        context.load_cert_chain(self._tls / f"{certificate}.crt", self._tls / f"{certificate}.key")
        sock = socket.create_connection((address[1], int(address[2])), timeout=PATIENCE)
        try:
            return Connection(context.wrap_socket(sock, server_hostname=address[1]), address[1])
        except BaseException:
            sock.close()
            raise

    def _api(self) -> Connection:
        urls = self._setting("listen-client-http-urls") or self._setting("listen-client-urls")
        return self._connect(urls, "client", "server-ca.crt")

    def members(self) -> list[Member]:
        """All members of the cluster, whether or not they answer."""
        with self._connect(self._setting("listen-peer-urls"), "peer-server-client", "peer-ca.crt") as connection:
            found: list[Member] = json.loads(connection.get("/members").read())
        return found

    def mend(self) -> str:
        """Give this member the address that k3s has started it with. What was done; nothing when it has it already."""
        members = self.members()  # first: once it answers, its configuration is that of this start
        name, (*loopback, url) = (self._folder / "name").read_text().strip(), self._setting("listen-peer-urls")
        if not loopback:
            raise OSError("k3s makes another cluster of it (--cluster-reset)")
        own = next((member for member in members if member["name"] == name), None)
        if own is None:
            raise OSError(f"{name} is no member of etcd")
        if url in own["peerURLs"]:
            return ""
        try:
            self._move(own, url)
        except OSError as error:
            known = ", ".join(f"{member['name']} at {' '.join(member['peerURLs'])}" for member in members)
            raise NotMoved(url, known if len(members) > 1 else "") from error
        return f"etcd has {url} for this member now, not {' '.join(own['peerURLs'])}"

    def _move(self, member: Member, url: str) -> None:
        body = json.dumps({"ID": str(member["id"]), "peerURLs": [url]}).encode()
        with self._api() as connection:
            answer = connection.ask("POST", "/v3/cluster/member/update", body)
            text = answer.read()
        if answer.status != 200:
            raise OSError(f"etcd refuses the address {url}: {text.decode(errors='replace').strip()}")

    def save(self, path: Path) -> None:
        """A snapshot of all objects as of one moment, as `etcdctl snapshot save` makes it. Raises Mistake."""
        digest, last = hashlib.sha256(), b""
        try:
            with self._api() as connection, path.open("wb") as file:
                for line in connection.ask("POST", "/v3/maintenance/snapshot", b"{}").lines():
                    digest.update(last)
                    last = base64.b64decode(json.loads(line)["result"].get("blob", ""))
                    file.write(last)
        except (OSError, KeyError, ValueError) as error:
            raise Mistake(f"no snapshot of etcd: {error!r}; is k3s ready (wait-ready)?") from None
        if digest.digest() != last:  # its own digest is the last part
            raise Mistake("no snapshot of etcd: what it sent is not complete")


def reset(command: list[str], snapshot: Path) -> bool:
    """Make a cluster of one member from a snapshot; from the member that is there when the file is empty."""
    (snapshot.parent / "reset-flag").unlink(missing_ok=True)  # of an earlier one: k3s would refuse
    before = copies()
    command = [*command, "--cluster-reset"]
    if snapshot.stat().st_size:
        command.append(f"--cluster-reset-restore-path={snapshot}")
    print("etcd: a snapshot was restored, so k3s makes a cluster of this one member first", flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as k3s:

        def stop(_number: int, _frame: FrameType | None) -> None:
            k3s.terminate()

        signal.signal(signal.SIGTERM, stop)
        done = False
        assert k3s.stdout is not None
        for line in k3s.stdout:
            done = done or DONE in line
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if done:
        snapshot.unlink()
        for path in copies() - before:
            volume.remove(path)
    return done


def copies() -> set[Path]:
    """What k3s has kept of what it replaced at a --cluster-reset: certificates and the etcd before."""
    here = volume.k3s_folder()
    return {*here.glob("server/tls-*"), *here.glob(f"{volume.ETCD}-old-*")}


def main() -> NoReturn:
    command = sys.argv[1:]
    snapshot = volume.k3s_folder() / volume.ETCD_SNAPSHOT
    if snapshot.exists() and not reset(command, snapshot):
        sys.exit("dind-k3s: error: k3s cannot make a cluster of what was restored; its reason is above")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
