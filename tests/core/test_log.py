from __future__ import annotations

import time
from contextlib import nullcontext

import pytest

from pipeline import __main__ as cli
from pipeline.core import log as logs
from pipeline.core.errors import UpstreamError
from pipeline.core.log import Log, redact, seconds, size


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


@pytest.mark.parametrize(("event", "line"), [(None, "still running: export ("), ("the moon", "waiting for the moon (")])
def test_a_silent_step_is_named_again_or_what_it_waits_for(
    event: str | None, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "_SILENCE", 0.1)
    log = Log()
    seen = ""
    with log.step("export"), log.waiting(event) if event else nullcontext():
        deadline = time.monotonic() + 10
        while line not in seen and time.monotonic() < deadline:
            time.sleep(0.05)
            seen += capsys.readouterr().err
    assert line in seen
    assert ("still running" in seen) == (event is None)


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


SECRET = "s3cr3t-Value.of/mine+1="


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: basic {SECRET}",
        f"Proxy-Authorization: {SECRET}",
        f"{{'Authorization': 'Bearer {SECRET}'}}",
        f'{{"authorization": "token {SECRET}"}}',
        f"sent with bearer {SECRET} to nobody",
        "https://me:s3cr3t-Value.of@host.example/path",
        "https://s3cr3t-Value.of@host.example/path",
        "http://me:p@s3cr3t-Value.of@host.example:8080/path",
        "git+https://me:s3cr3t-Value.of@host.example",
        f"https://host.example/file?token={SECRET}",
        f"https://host.example/file?a=1&access_token={SECRET}&b=2",
        f"https://host.example/file?X-Amz-Signature={SECRET}&X-Amz-Credential={SECRET}",
        f"https://host.example/file?sig={SECRET};se=1",
        f"https://host.example/file?client_secret={SECRET}#x",
        "ghp_s3cr3tValues3cr3tValues3cr3tValue in a message",
        "github_pat_11s3cr3tValue_s3cr3tValues3cr3tValue",
    ],
)
def test_what_is_secret_is_not_shown(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "s3cr3t" not in redact(text)
    assert redact(redact(text)) == redact(text)
    log = Log()
    log.say(text)
    log.warn(text)
    log.command(["curl", text])
    log.table(text, ["a"], [[text]])
    with log.step(text):
        pass
    cli.report(UpstreamError(text, expected=text, found=text, where=text, next_step=text))
    printed = capsys.readouterr()
    assert "s3cr3t" not in printed.err + printed.out
    assert "…" in printed.err


@pytest.mark.parametrize("github", [True, False])
def test_annotations_on_github_hide_as_much(
    github: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true" if github else "false")
    log = Log()
    text = f"https://me:{SECRET}@host.example/?token={SECRET}".replace("/mine+1=", "")
    log.warn(text)
    cli.report(UpstreamError(text))
    with log.step(text):
        pass
    assert "s3cr3t" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/k3s-io/k3s/releases/download/v1.37.1%2Bk3s1/k3s",
        "docker.io/library/debian@sha256:00",
        "oci-layout://dist/build/base@sha256:00",
        "https://github.com/docker/buildx.git/info/refs?service=git-upload-pack",
        "krel-staging@k8s-releng-prod.iam.gserviceaccount.com",
        "docker login accepts a password or an access token",
        "the bearer of news, a basic understanding of authorization",
        "+ docker run -e TOKENS=1 a=b",
    ],
)
def test_what_is_not_secret_is_shown_as_it_is(text: str) -> None:
    assert redact(text) == text
