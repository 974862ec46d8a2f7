"""What pods' networks leave in this container when no CNI plugin is asked to remove it: addresses, links, rules.

The host ports of a dead pod would stay the first to match, and its address would stay taken. k3s-killall.sh of k3s's
own installation goes by the same names of chains.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

LINKS = ("cni0", "flannel.1", "flannel-wg")
CHAINS = re.compile(r"\b(KUBE|CNI|FLANNEL)-")  # of kube-proxy and the network policy controller, of plugins, of flannel
FILES = ("/var/lib/cni", "/run/flannel")


def forget() -> list[str]:
    """Remove links and rules, while k3s does not run; FILES are the caller's. A line for each failure."""
    failures = []
    for link in LINKS:
        if Path(f"/sys/class/net/{link}").exists():
            failures += _failure(["ip", "link", "delete", link])
    for family in ("iptables", "ip6tables"):
        saved = subprocess.run([f"{family}-save"], capture_output=True, text=True, check=False).stdout
        kept = "".join(line for line in saved.splitlines(keepends=True) if not CHAINS.search(line))
        if kept != saved:
            failures += _failure([f"{family}-restore"], kept)
    return failures


def _failure(command: list[str], text: str = "") -> list[str]:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return [f"{' '.join(command)}: {done.stderr.strip()}"] if done.returncode else []
