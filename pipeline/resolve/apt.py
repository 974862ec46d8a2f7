"""apt with a separate state and configuration, for other suites and architectures than this machine's.

Of this machine's configuration only the access to archives is used: proxies, credentials, TLS, retries. Packages add
index targets (appstream, apt-file, command-not-found), which a mirror of two suites lacks, and hooks for desktops.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from pipeline.core.platforms import Platform

# apt.conf(5), the group Acquire: methods and what limits or authorizes a transfer. Not Languages, GzipIndexes,
# CompressionTypes (they choose what is downloaded), nor what accepts unsigned archives.
_TRANSPORT = re.compile(
    r"Acquire::(?:(?:https?|ftp|[\w.-]+\+\w+|Retries|Queue-\w+|ForceIPv[46]|Check-\w[\w-]*|Max-\w+|Min-\w+)\b)"
    r"|Dir::Etc::netrc|Dir::Bin::methods"
)


def configure(
    folder: Path, sources: Iterable[tuple[str, str, str]], platforms: Iterable[Platform], status: bytes = b""
) -> Path:
    """Write apt's state to a folder (absolute) and return the path of its apt.conf.

    `sources`: base URL, suite and trusted keyrings (paths, separated by commas) of each archive. The first of
    `platforms` is apt's native architecture. `status`: the dpkg status of the base system. Only the package indexes of
    the component main are downloaded.
    """
    for name in ("lists/partial", "cache/archives/partial", "none"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").write_bytes(status)
    lines = [f"deb [target=Packages signed-by={keys}] {uri} {suite} main\n" for uri, suite, keys in sources]
    (folder / "sources.list").write_text("".join(lines), encoding="utf-8")
    names = [f'"{platform.names.debian}";' for platform in platforms]
    configuration = folder / "apt.conf"
    configuration.touch(mode=0o600)  # the URL of a proxy can contain a password
    configuration.write_text(
        f"{_transport()}"
        'Dir::Etc::main "-";\n'
        f'Dir::Etc::parts "{folder}/none";\n'
        'Dir::Etc::preferences "-";\n'
        'Dir::Etc::preferencesparts "-";\n'
        f'Dir::Etc::sourcelist "{folder}/sources.list";\n'
        'Dir::Etc::sourceparts "-";\n'
        f'Dir::State "{folder}";\n'
        f'Dir::State::lists "{folder}/lists";\n'
        f'Dir::State::status "{folder}/status";\n'
        f'Dir::Cache "{folder}/cache";\n'
        f"APT::Architecture {names[0]}\n"
        f"APT::Architectures {{ {' '.join(names)} }};\n"
        'APT::Install-Recommends "false";\n'
        'APT::Sandbox::User "root";\n'
        'Acquire::ForceHash "sha256";\n'
        'Acquire::Languages "none";\n',
        encoding="utf-8",
    )
    return configuration


def run(configuration: Path | None, *command: str) -> subprocess.CompletedProcess[str]:
    """Run one of apt's programs with a configuration of `configure`, or with this machine's (None)."""
    return subprocess.run(
        command,
        env={**os.environ, "LC_ALL": "C.UTF-8", **({"APT_CONFIG": str(configuration)} if configuration else {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _transport() -> str:
    """Return this machine's configuration of transfers, as for apt.conf(5)."""
    dumped = run(None, "apt-config", "dump").stdout.splitlines(keepends=True)
    return "".join(line for line in dumped if _TRANSPORT.match(line))
