"""Files and variables of the user: what is taken, and the sentence for what is not."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from dind_k3s import configure, user_files, variables
from dind_k3s.plan import Mistake, shown

FILE = "/etc/docker/daemon.json"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    path = tmp_path / FILE.lstrip("/")
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    "content", [b'{"mtu": 1}', b'\xef\xbb\xbf{"mtu": 1}', '\ufeff{"mtu": 1}'.encode("utf-16-le"), b' {\n"mtu" : 1 }\n']
)
def test_json_in_any_encoding_that_dockerd_reads(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert user_files.read_object(FILE) == ({"mtu": 1}, [])


@pytest.mark.parametrize("content", [b"", b" \n"])
def test_an_empty_file_is_no_file(file: Path, content: bytes) -> None:
    assert user_files.read_object(FILE) == ({}, [])
    file.write_bytes(content)
    assert user_files.read_object(FILE) == ({}, [])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"mtu": 1,}', "is not JSON: line 1, column 1"),
        (b'{\n// mine\n"mtu": 1}', r"line 2, column 1.*JSON has no comments"),
        (b"[]", "must hold a JSON object, it holds a list"),
        (b'{"mtu": NaN}', "NaN is no number in JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": "\xff"}', "line 1 has the byte 0xff"),
        (b" " * (2 << 20), "more than 1048576 bytes"),
    ],
)
def test_what_is_not_json_is_a_sentence_with_the_place(file: Path, content: bytes, words: str) -> None:
    file.write_bytes(content)
    with pytest.raises(Mistake, match=words) as refused:
        user_files.read_object(FILE)
    assert len(refused.value.messages) == 1
    assert refused.value.messages[0].startswith(FILE)


def test_a_key_that_is_there_twice_is_told(file: Path) -> None:
    file.write_text('{"mtu": 1, "mtu": 2}')
    assert user_files.read_object(FILE) == ({"mtu": 2}, ["mtu"])


def test_what_is_no_file(file: Path) -> None:
    file.mkdir()
    with pytest.raises(Mistake, match="is a folder"):
        user_files.read_text(FILE)
    file.rmdir()
    file.symlink_to("/nonexistent/x")
    with pytest.raises(Mistake, match="is a link to /nonexistent/x, which is not there"):
        user_files.read_text(FILE)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(Mistake, match="is not a file"):
        user_files.read_text(FILE)
    file.unlink()
    file.symlink_to("/dev/null")
    assert user_files.read_text(FILE) == ""


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("PROFILE", ["dev", "ci", "edge"], ["prod", "ci\n", "CI", "dev "]),
        ("K3S_NODE_NAME", ["a", "a-1.b"], ["A", "-a", "a_b", "a" * 254, "a\nb", "ü"]),
        ("K3S_KUBECONFIG_MODE", ["0600", "644"], ["9", "0o644", "rw", "00644 "]),
        ("K3S_KUBECONFIG_OUTPUT", ["/x/y"], ["x", "/x/", "/x\ny"]),
        ("K3S_TLS_SAN", ["a", "a, 10.0.0.1,*.b", "::1", "a b"], ["a;b", ",", "a\n"]),
        ("DIND_K3S_STOP_GRACE", ["5", "0.5"], ["nan", "inf", "-1", "1e9", "٣"]),
        ("K3S_RENEW_HOURS", ["3-5", "22-4", "0-24"], ["3", "3:00-5:00", "25-26", "3-5-7", "nightly"]),
        ("DOCKER_MIN_API_VERSION", ["1.24", "1.44"], ["24", "v1.24", "1.x", "1.44.0"]),
        ("K3S_FLANNEL_BACKEND", ["host-gw", "vxlan", "none"], ["tunnel", "VXLAN"]),
        ("DOCKER_DRIVER", ["overlay2", "vfs"], ["aufs2", "overlay2\n"]),
    ],
)
def test_single_variables(name: str, good: list[str], bad: list[str]) -> None:
    assert not variables.mistakes({name: ""})
    for value in good:
        assert not variables.mistakes({name: value}), value
    for value in bad:
        (sentence,) = variables.mistakes({name: value})
        assert sentence.startswith(f"{name} is ")
        assert sentence.isprintable()


def test_a_value_in_a_sentence_is_on_one_line_and_short() -> None:
    assert shown("a\n\x1b[0m\udcff") == r"a\n\x1b[0m\udcff"
    assert shown("x" * 100_000) == f"{'x' * 80}… (100000 characters)"


def test_what_cannot_be_written_is_a_sentence(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("")
    (tmp_path / "usr/share/dind-k3s").mkdir(parents=True)
    manifest = '[{"component": "docker", "version": "29.7"}, {"component": "k3s", "version": "v1.37"}]'
    (tmp_path / "usr/share/dind-k3s/manifest.json").write_text(manifest)
    monkeypatch.setattr("sys.argv", ["configure"])
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert configure.main() == 2
    assert "run/dind-k3s" in capsys.readouterr().err


def test_nothing_is_configured_after_a_step_refused_the_start(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert configure.main() == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert capsys.readouterr() == ("", "")
