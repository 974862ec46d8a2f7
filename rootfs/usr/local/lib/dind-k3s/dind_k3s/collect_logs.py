"""collect-logs [FILE|-]: a tarball for a bug report, without secrets and of bounded size.

Everything that shows what happened here: logs, configurations, what the start found, `doctor`, the daemons' own words.
A part that is not available is named in contents.txt and stops no other.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from dind_k3s import k3s_command
from dind_k3s.finding import output
from dind_k3s.redactor import Redactor
from dind_k3s.root import RUN, at, first_process

USAGE = """usage: collect-logs [FILE|-]
Writes a tarball for a bug report: logs, configurations, doctor's findings, what docker and kubectl say. Tokens, keys
and passwords are taken out; look through it all the same before you publish it. Without FILE it is a new one in /tmp;
-: standard output, as in `docker exec dev collect-logs - >logs.tar.gz`."""

PART = 2 << 20  # bytes of each part: its end, for that is where the trouble is
ALL = 24 << 20  # bytes of all parts together, before they are packed
TIMEOUT = 15.0

FILES = (
    f"{RUN}/*",
    f"{RUN}/ready/*",
    f"{RUN}/k3s/*.yaml",
    "/etc/docker/daemon.json",
    "/etc/rancher/k3s/*.yaml",
    "/etc/rancher/k3s/config.yaml.d/*.yaml",
    "/app/k3s/*.yaml",
    "/app/k3s/config.yaml.d/*.yaml",
    "/app/k3s/agent/etc/kubelet.conf.d/*",
    "/etc/supervisor/conf.d/*.conf",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/os-release",
    "/usr/share/dind-k3s/manifest.json",
    "/proc/meminfo",
    "/proc/mounts",
    "/proc/self/cgroup",
    "/app/logs/*.log",
    "/app/logs/*.log.1",
)
KEPT_OUT = re.compile(r"\.pem$|\.key$|/k3s\.yaml$")  # nothing but secrets

COMMANDS = {
    "doctor.json": "doctor --json",
    "verify.txt": "dind-k3s verify",
    "supervisorctl.txt": "supervisorctl status",
    "docker-version.txt": "docker version",
    "docker-info.txt": "docker info",
    "docker-ps.txt": "docker ps --all",
    "docker-images.txt": "docker images",
    "docker-networks.txt": "docker network ls",
    "docker-df.txt": "docker system df",
    "buildx-version.txt": "docker buildx version",
    "compose-version.txt": "docker compose version",
    "containerd-version.txt": "containerd --version",
    "runc-version.txt": "runc --version",
    "k3s-version.txt": "k3s --version",
    "kubectl-version.txt": "kubectl version --request-timeout=10s",
    "nodes.txt": "kubectl get nodes -o wide --request-timeout=10s",
    "pods.txt": "kubectl get pods -A -o wide --request-timeout=10s",
    "services.txt": "kubectl get services -A -o wide --request-timeout=10s",
    "events.txt": "kubectl get events -A --request-timeout=10s",
    "nodes-described.txt": "kubectl describe nodes --request-timeout=10s",
    "uname.txt": "uname -a",
    "date.txt": "date --iso-8601=seconds",
    "processes.txt": "ps -eo pid,ppid,stat,etime,rss,args --width 500",
    "disks.txt": "df -h",
    "addresses.txt": "ip address",
    "routes.txt": "ip route",
    "iptables.txt": "iptables-save",
    "dmesg.txt": "dmesg",
}

# Read for what must not be seen, and left where they are.
SECRET_FILES = ("/app/k3s/server/*token", "/app/k3s/server/cred/*", "/etc/rancher/node/password")
CONFIGURATIONS = (
    *("/root/.docker/config.json", "/app/k3s/k3s.yaml", f"{RUN}/*.json", f"{RUN}/*.args"),
    *(pattern for pattern in FILES if pattern.endswith((".json", ".yaml"))),
)


def main() -> int:
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    if len(arguments) > 1 or (arguments and arguments[0] != "-" and arguments[0].startswith("-")):
        print(USAGE, file=sys.stderr)
        return 2
    target = arguments[0] if arguments else f"/tmp/dind-k3s-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.tar.gz"
    if target == "-" and sys.stdout.isatty():
        print("collect-logs: this would write a tarball onto your terminal; send it into a file", file=sys.stderr)
        return 2
    packed = collect()
    try:
        if target == "-":
            sys.stdout.buffer.write(packed)
            sys.stdout.buffer.flush()
        else:
            Path(target).touch(mode=0o600)
            Path(target).write_bytes(packed)
            print(f"{target} ({len(packed) / 2**20:.1f} MiB); docker cp CONTAINER:{target} . copies it out")
    except OSError as error:
        print(f"collect-logs: {target} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def collect() -> bytes:
    """The tarball."""
    environment = container_environment()
    redactor = taught(environment)
    messages = [f"collected {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"]
    messages += ["`docker logs` of this container, which has the lines of its start, can only be had from outside", ""]
    room = ALL
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w:gz", compresslevel=6) as archive:
        parts = [("environment.txt", "\n".join(f"{name}={value}" for name, value in sorted(environment.items())), "")]
        for name, text, trouble in [*parts, *commands(), *files()]:
            data = redactor.clean(text).encode(errors="replace")[-PART:]
            if len(data) > room:
                messages.append(f"{name}: left out, the tarball is large enough")
                continue
            room -= len(data)
            messages.append(f"{name}: {trouble or f'{len(data)} bytes'}")
            _add(archive, name, data)
        _add(archive, "contents.txt", redactor.clean("\n".join(messages) + "\n").encode(errors="replace"))
    return output.getvalue()


def container_environment() -> dict[str, str]:
    """The container's variables; those of this process where the first one's cannot be read."""
    try:
        words = (first_process() / "environ").read_bytes().decode(errors="surrogateescape").split("\0")
    except OSError:
        return dict(os.environ)
    return {**dict(word.split("=", 1) for word in words if "=" in word), **os.environ}


def taught(environment: dict[str, str]) -> Redactor:
    """A redactor that knows this container's secrets."""
    redactor = Redactor()
    redactor.learn_environment(environment)
    arguments = [*environment.get("K3S_ARGS", "").split(), *k3s_command.command()]
    redactor.learn(*(value for flag, value in pairwise(arguments) if flag == "-t"))
    for path in _paths(SECRET_FILES):
        redactor.learn_file(path)
        if path.parent.name == "cred":
            redactor.learn(*(word for word in re.split(r"[\s,]+", _tail(path)) if len(word) >= 16))
    for path in _paths(CONFIGURATIONS):
        try:
            redactor.learn_text(_tail(path))
        except OSError:
            continue
    return redactor


def commands() -> Iterator[tuple[str, str, str]]:
    """Name, text and trouble of what each command says."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        answers = pool.map(lambda command: output(*command.split(), timeout=TIMEOUT), COMMANDS.values())
        for (name, command), (status, text) in zip(COMMANDS.items(), answers, strict=True):
            yield f"commands/{name}", f"$ {command}\n{text}\n", f"exit code {status}" if status else ""


def files() -> Iterator[tuple[str, str, str]]:
    """Name, text and trouble of each file, at its own path."""
    for path in _paths(FILES):
        name = f"files{path}"
        if KEPT_OUT.search(name) or not path.is_file():
            continue
        try:
            yield name, _tail(path).replace("\0", "\n"), ""
        except OSError as error:
            yield name, "", f"cannot be read: {error.strerror}"


def _paths(patterns: tuple[str, ...]) -> list[Path]:
    root = at("/")
    found: dict[Path, None] = {}
    for pattern in patterns:
        try:
            found |= dict.fromkeys(sorted(root.glob(pattern.lstrip("/"))))
        except OSError:
            continue
    return list(found)


def _tail(path: Path) -> str:
    """The end of a file, from the beginning of a line on."""
    with path.open("rb") as file:
        try:
            file.seek(-PART, os.SEEK_END)
        except OSError:
            file.seek(0)
            return file.read(PART).decode(errors="replace")
        return file.read(PART).partition(b"\n")[2].decode(errors="replace")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(f"dind-k3s/{name}")
    member.size, member.mtime, member.mode = len(data), int(time.time()), 0o644
    archive.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    sys.exit(main())
