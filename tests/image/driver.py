"""Runs inside a container: the image's own `configure` on many cases, each in a process and a root of its own.

CASES is a JSON list of {env, extra, facts, files}; prints a JSON list of outcomes. What is taken is compared with the
real `dockerd --validate` and the stub k3s's own reading of its configuration.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

LIBRARY, K3S = "/usr/local/lib/dind-k3s", "/usr/local/bin/k3s"
LIMIT = 30  # seconds for one case
MANIFEST = "/usr/share/dind-k3s/manifest.json"


def run(case: dict[str, Any]) -> dict[str, Any]:
    """One case, in a process of its own."""
    sys.path[:0] = [LIBRARY, K3S]
    root = Path(tempfile.mkdtemp(prefix="case-"))
    signal.alarm(LIMIT)
    began = time.monotonic()
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    outcome: dict[str, Any] = {"code": None, "refused": ""}
    try:
        prepare(root, case)
        os.environ["DIND_K3S_TEST_ROOT"] = str(root)
        os.environb.update({key.encode(): os.fsencode(value) for key, value in case["env"].items()})
        sys.argv = ["configure", *case["extra"]]
        configure = importlib.import_module("dind_k3s.configure")
        sys.stdin = io.StringIO("\n")  # as of the entrypoint
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            outcome["code"] = configure.main()
        if outcome["code"] == 0:
            outcome["refused"] = k3s(root, case)
            config = (root / "run/dind-k3s/daemon.json").read_text()
            outcome["dockerd"] = (config, *map(os.fsdecode, arguments(root, "dockerd")))
    except BaseException:
        outcome["traceback"] = traceback.format_exc()
    finally:
        signal.alarm(0)
        shutil.rmtree(root)
    for name, stream in (("out", output), ("err", errors)):
        stream.flush()
        outcome[name] = stream.buffer.getvalue().decode()
    return outcome | {"seconds": round(time.monotonic() - began, 2)}


def prepare(root: Path, case: dict[str, Any]) -> None:
    """The case's root. A file without text is a folder."""
    facts = "".join(f"{key}={value}\n" for key, value in case["facts"].items())
    files = {"/run/dind-k3s/facts": facts, MANIFEST: Path(MANIFEST).read_text(), **case["files"]}
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.mkdir()
        else:
            path.write_bytes(text.encode(errors="surrogateescape"))


def arguments(root: Path, program: str) -> list[bytes]:
    """The words that run-dockerd and run-k3s hand to their programs."""
    return (root / f"run/dind-k3s/{program}.args").read_bytes().split(b"\0")[:-1]


def dockerd(settings: tuple[str, ...]) -> str:
    """What the real dockerd says against a daemon.json and arguments."""
    config, *args = settings
    command = ["dockerd", "--validate", "--config-file", "/dev/stdin", *args]
    done = subprocess.run(command, input=config.encode(), capture_output=True, check=False)
    return done.stderr.decode(errors="replace")[:400] if done.returncode else ""


def k3s(root: Path, case: dict[str, Any]) -> str:
    """What the stub says against it, with the user's files linked as run-k3s links them."""
    ours = root / "run/dind-k3s/k3s/config.yaml"
    if not ours.exists():
        return ""
    after = root / "run/dind-k3s/k3s/config.yaml.d"
    after.mkdir(exist_ok=True)
    for number, folder in ((10, "etc/rancher/k3s"), (20, "app/k3s")):
        for file in [root / folder / "config.yaml", *(root / folder / "config.yaml.d").glob("*.yaml")]:
            if file.is_file():
                (after / f"{number}-{file.name}").symlink_to(file)
    config = importlib.import_module("stub_k3s.config")
    try:
        _role, *words = map(os.fsdecode, arguments(root, "k3s"))
        config.load(words, {**case["env"], "K3S_CONFIG_FILE": str(ours)})
    except config.Failure as error:
        return f"k3s: {error}"
    return ""


if __name__ == "__main__":
    cases = json.loads(Path(sys.argv[1]).read_text())
    fork = multiprocessing.get_context("fork")
    with fork.Pool(2, maxtasksperchild=1) as pool:
        outcomes = pool.map(run, cases, chunksize=1)
    taken = sorted({outcome["dockerd"] for outcome in outcomes if "dockerd" in outcome})
    with fork.Pool(2) as pool:
        refusals = dict(zip(taken, pool.map(dockerd, taken), strict=True))
    for outcome in outcomes:
        if "dockerd" in outcome:
            outcome["refused"] = outcome["refused"] or refusals[outcome["dockerd"]]
    print(json.dumps(outcomes))
