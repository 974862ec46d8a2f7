"""doctor [--json]: what this container found in its host, and what to do about it.

Each check has an id, a state (ok, warn, fail), the evidence for it, and a remedy unless it is ok. None needs the start
to be finished, a daemon, privileges or a writable root: what cannot be tried is reported as such.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict

from dind_k3s import host_checks, own_checks
from dind_k3s.finding import Finding

USAGE = """usage: doctor [--json]
Exits with 0 when nothing fails (there may be warnings), 1 when a check fails, 2 when it is called wrongly."""

CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    host_checks.privileges,
    host_checks.cgroups,
    host_checks.kernel,
    host_checks.memory,
    host_checks.clock,
    host_checks.machine,
    own_checks.storage,
    own_checks.volumes,
    own_checks.iptables,
    own_checks.network,
    own_checks.dns,
    own_checks.containers,
    own_checks.docker,
    own_checks.ends,
    own_checks.readiness,
)


def findings() -> Iterator[Finding]:
    """What all checks find. One that fails itself is a finding, too, and stops no other."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:
            evidence = f"this check itself failed: {type(error).__name__}: {error}"
            yield Finding(id=check.__name__, state="warn", evidence=evidence, remedy="please report it")


def main() -> int:
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    if arguments not in ([], ["--json"]):
        print(USAGE, file=sys.stderr)
        return 2
    found = [*findings()]
    if arguments:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        for one in found:
            print(f"{one.state:4}  {one.id:22} {one.evidence}" + (f"\n{'':6}{one.remedy}" if one.remedy else ""))
        counts = {state: sum(one.state == state for one in found) for state in ("ok", "warn", "fail")}
        print(f"{len(found)} checks: {counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failures")
    return int(any(one.state == "fail" for one in found))


if __name__ == "__main__":
    sys.exit(main())
