from __future__ import annotations

import time

import pytest

from pipeline import log as logs
from pipeline.log import Log, seconds, size


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (85_700_518, "85.7 MB"), (2 * 10**12, "2000.0 GB")],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("value", "text"), [(0.42, "0.4 s"), (73.4, "73 s"), (725, "12 min 5 s")])
def test_durations_for_people(value: float, text: str) -> None:
    assert seconds(value) == text


def test_steps_are_indented_and_a_failed_one_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    with pytest.raises(ValueError, match="no"), log.step("outer"), log.step("inner"):
        raise ValueError("no")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ·")[0] for line in lines] == ["▶ outer", "  ▶ inner", "  ✗ inner", "✗ outer"]


def test_a_silent_step_is_named_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(logs, "_SILENCE", 0.1)
    log = Log()
    seen = ""
    with log.step("export"):
        deadline = time.monotonic() + 10
        while "… export goes on" not in seen and time.monotonic() < deadline:
            time.sleep(0.05)
            seen += capsys.readouterr().err
    assert "… export goes on" in seen


def test_colons_and_brackets_of_others_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Log().say("a:x:b [red]c[/red]")
    assert capsys.readouterr().err == "a:x:b [red]c[/red]\n"


def test_transfers_without_a_terminal_tell_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "_PLAIN_EVERY", 0.0)
    with Log().transfers() as transfers:
        transfers.start("k3s", 2000).advance(1000)
    assert "k3s: 1.0 kB of 2.0 kB" in capsys.readouterr().err
