"""The stand-in for pkg_resources, in a process of its own: nothing else may see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[2] / "rootfs/usr/local/lib/dind-k3s"
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import dind_k3s.entry_points
import pkg_resources
assert pkg_resources.EntryPoint.parse("x=" + "posixpath:join").resolve()("a", "b") == "a/b"
for wrong, error in {"no_such_module:join": ImportError, "posixpath:no_such_name": AttributeError}.items():
    try:
        pkg_resources.EntryPoint.parse("x=" + wrong).resolve()
    except error:
        continue
    raise AssertionError(wrong)
"""


def test_what_supervisor_asks_of_pkg_resources_is_answered() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", PROGRAM, str(LIBRARY)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
