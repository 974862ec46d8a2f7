"""Options of `docker run` and variables that cannot work: refused, or told, in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import machine
from tests.image.box import Box

pytestmark = pytest.mark.engine

ALONE = {"K3S_DISABLE": "1"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"read_only": True}, "the root file system cannot be written"),
        ({"user": "1000"}, "this container runs as user 1000, and dockerd needs root"),
    ],
    ids=["read-only", "user"],
)
def test_options_that_cannot_work_are_refused(boxes: Callable[..., Box], options: dict[str, Any], error: str) -> None:
    made = boxes(environment=ALONE, options=options)
    made.start()
    code, log = made.ends()
    assert code == 2
    assert [line.startswith(error) for line in made.errors()] == [True], log
    assert len(log.splitlines()) == 1, log  # and nothing raw


def test_a_small_limit_of_open_files_is_raised_or_refused(boxes: Callable[..., Box]) -> None:
    made = boxes(environment=ALONE, options={"ulimit": ["nofile=512:512"]})
    made.start()
    if machine.has_capability(machine.CAP_SYS_RESOURCE):
        made.ready("docker")
        assert "it was limited to 512 open files, which are 65536 now" in made.log()
    else:
        code, _ = made.ends()
        why = "this container may hold 512 files open, and dockerd and k3s need more: --ulimit nofile=65536:65536"
        assert (code, made.errors()) == (2, [why])


def test_a_certificate_of_another_ending_and_a_proxy_that_is_not_here(
    boxes: Callable[..., Box], tmp_path: Path
) -> None:
    (tmp_path / "own.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    made = boxes(environment={**ALONE, "HTTPS_PROXY": "http://127.0.0.1:3128"})
    made.volumes = [*made.own_volumes.items(), (tmp_path, "/certs.d")]
    made.up("docker")
    assert "own.pem in /certs.d is not trusted: expected are files named *.crt" in made.log()
    assert "HTTPS_PROXY is http://127.0.0.1:3128, which is this container itself, and nothing listens" in made.log()
