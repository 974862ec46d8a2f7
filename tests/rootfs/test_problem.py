"""The lines of a daemon's log that give the reason of its end."""

from __future__ import annotations

from pathlib import Path

import pytest
from dind_k3s import problem

KUBELET = r"kubelet exited: failed to parse kubelet flag: unknown flag: --nonsense"
FATAL = {
    f'time="2026-08-21T06:25:12Z" level=error msg="Shutdown request received: \\"{KUBELET}\\""': (
        f'Shutdown request received: "{KUBELET}"'
    ),
    'time="2026-08-21T06:25:12Z" level=fatal msg="starting kubernetes: preparing server: no luck"': (
        "starting kubernetes: preparing server: no luck"
    ),
    r'time="2026-08-21T06:25:12Z" level=fatal msg="not text: \xff"': r"not text: \xff",
    "F0821 06:25:12.000000     103 csi_plugin.go:413] Failed to initialize CSINode after retrying: timed out": (
        "Failed to initialize CSINode after retrying: timed out"
    ),
    "time=2026 level=fatal msg=EOF": "EOF",
    "dind-k3s: error: the token is not for the server": "the token is not for the server",
    "panic: runtime error: index out of range": "panic: runtime error: index out of range",
    "failed to start daemon: no such option": "failed to start daemon: no such option",
    'level=fatal msg="https://user:secret@db.example is not there"': "https://***@db.example is not there",
}
ORDINARY = [
    'time="2026-08-21T06:25:12Z" level=info msg="Starting k3s v1.36.3+k3s1"',
    'time="2026-08-21T06:25:12Z" level=error msg="Failed to get node: not found"',
    "I0821 06:25:12.000000       7 server.go:1] Error: none",
]


@pytest.mark.parametrize("line", FATAL)
def test_a_fatal_line_is_the_reason_of_an_end(line: str) -> None:
    assert problem.reason(line) == FATAL[line]


def test_an_ordinary_line_is_no_reason_and_an_error_has_a_message() -> None:
    assert [problem.reason(line) for line in ORDINARY] == ["", "", ""]
    assert [problem.error(line) for line in ORDINARY] == ["", "Failed to get node: not found", ""]


def test_the_file_is_one_line_and_names_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    monkeypatch.setenv("K3S_ARGS", "--node-name=front --debug")
    problem.path("k3s").parent.mkdir(parents=True)
    problem.write("k3s", problem.name_taken())
    (line,) = problem.path("k3s").read_text().splitlines()
    assert "the node name front is taken" in line
    assert "kubectl delete node front" in line
