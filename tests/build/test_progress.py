"""Progress of a build: logged steps, counts, the failing step."""

from __future__ import annotations

import base64
import json

from pipeline.build.progress import Solve

START, END = "2026-11-22T10:00:00.123456789Z", "2026-11-22T10:00:02.623456789Z"


def line(**status: object) -> str:
    return json.dumps(status)


def vertex(name: str, **more: object) -> dict[str, object]:
    return {"digest": f"sha256:{name}", "name": name, **more}


def test_logs_each_step_once_with_its_time() -> None:
    solve = Solve()
    assert solve.feed(line(vertexes=[vertex("[linux/arm64 k3s 1/2] COPY", started=START)])) == []
    done = line(vertexes=[vertex("[linux/arm64 k3s 1/2] COPY", started=START, completed=END)])
    assert solve.feed(done) == ["   2.5 s  [linux/arm64 k3s 1/2] COPY"]
    assert solve.feed(done) == []
    assert (solve.ran, solve.cached) == (1, 0)


def test_counts_steps_of_the_dockerfile() -> None:
    solve = Solve()
    solve.feed(
        line(
            vertexes=[
                vertex("[internal] load build definition", completed=END),
                vertex("[base 1/1] FROM", cached=True, completed=END),
                vertex("exporting to oci image format", started=START, completed=END),
            ]
        )
    )
    assert (solve.ran, solve.cached) == (0, 1)
    assert solve.slowest == [("exporting to oci image format", 2.5)]


def test_the_failing_step_comes_with_its_last_lines() -> None:
    solve = Solve()
    solve.feed(line(vertexes=[vertex("[b 1/1] RUN false", started=START)]))
    text = base64.b64encode(b"first\nno such file\n").decode()
    solve.feed(line(logs=[{"vertex": "sha256:[b 1/1] RUN false", "data": text}]))
    solve.feed(line(vertexes=[vertex("[c 1/1] COPY", error="context canceled", completed=END)]))
    solve.feed(line(vertexes=[vertex("[b 1/1] RUN false", error="exit code: 1", completed=END)]))
    step, tail = solve.failure()
    assert step == "[b 1/1] RUN false"
    assert tail == ["first", "no such file", "exit code: 1"]


def test_lines_that_are_not_json_are_kept_for_a_failure() -> None:
    solve = Solve()
    solve.feed("ERROR: no builder named x")
    assert solve.failure() == ("buildx itself", ["ERROR: no builder named x"])
