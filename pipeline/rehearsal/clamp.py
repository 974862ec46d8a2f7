"""An OCI runtime without negative oom_score_adj, for machines whose root lacks CAP_SYS_RESOURCE.

kubelet sets -998 for pause containers; without that capability the kernel refuses it and runc fails. The rehearsal
copies this runtime into the container that it boots and makes it the inner dockerd's default. It is never part of the
image. The setting: https://github.com/opencontainers/runtime-spec/blob/main/config.md (process)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.core import machine
from pipeline.core.log import Log
from pipeline.smoke.booted import BootOptions

INSIDE = "/usr/local/libexec/runc-clamped"  # its path in the booted container
ARGUMENTS = f"--add-runtime clamped={INSIDE} --default-runtime clamped"  # of dockerd

RUNTIME = """#!/usr/bin/python3
# runc, but a container that asks for an oom_score_adj below 0 gets 0: this machine's root may not lower it.
import json
import os
import pathlib
import sys

if "create" in sys.argv or "run" in sys.argv:
    bundle = pathlib.Path.cwd()
    for flag, value in zip(sys.argv, sys.argv[1:]):
        if flag in ("-b", "--bundle"):
            bundle = pathlib.Path(value)
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    if (config["process"].get("oomScoreAdj") or 0) < 0:
        config["process"]["oomScoreAdj"] = 0
        path.write_text(json.dumps(config))
os.execvp("runc", ["runc", *sys.argv[1:]])
"""


def apply(options: BootOptions, folder: Path, log: Log) -> BootOptions:
    """Add the runtime to the options of a boot, unless root has the capability."""
    if machine.has_capability(machine.CAP_SYS_RESOURCE):
        return options
    log.say("this machine's root lacks CAP_SYS_RESOURCE: the booted container gets a runtime that clamps oom_score_adj")
    runtime = folder / "runc-clamped"
    runtime.write_text(RUNTIME, encoding="ascii")
    runtime.chmod(0o755)
    return replace(
        options,
        extra_files=(*options.extra_files, (runtime, INSIDE)),
        extra_environment={**options.extra_environment, "DOCKER_ARGS": ARGUMENTS},
    )
