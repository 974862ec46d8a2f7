"""kubeconfig: where it points to, and which mistakes are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from dind_k3s import kubeconfig
from dind_k3s.plan import Mistake

TEXT = "clusters:\n- cluster:\n    server: https://127.0.0.1:6443\n  name: default\n"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://ci.example:16443", "https://ci.example:16443"),
        ("https://ci.example/", "https://ci.example:6443"),
        ("ci.example", "https://ci.example:6443"),
        ("192.0.2.1:7443", "https://192.0.2.1:7443"),
        ("https://[2001:db8::1]:6443", "https://[2001:db8::1]:6443"),
    ],
)
def test_a_server(given: str, url: str) -> None:
    assert kubeconfig.server_url(given) == url


@pytest.mark.parametrize(
    "given",
    [
        "",
        "http://x",
        "https://",
        "https://x/y",
        "https://a:b@x",
        "https://x:0x",
        "x:99999",
        "https://[::1",
        "a b",
        "a\nb",
    ],
)
def test_what_is_no_server(given: str) -> None:
    with pytest.raises(Mistake, match="--server"):
        kubeconfig.server_url(given)


@pytest.mark.parametrize(
    ("name", "host", "good"),
    [
        ("docker", "DOCKER", True),
        ("*.example.org", "a.example.org", True),
        ("*.example.org", "a.b.example.org", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("0:0:0:0:0:0:0:1", "::1", True),
        ("docker", "docker.example", False),
    ],
)
def test_names_of_certificates(name: str, host: str, good: bool) -> None:
    assert kubeconfig.covers(name, host) == good


def test_a_host_that_the_certificate_is_not_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeconfig, "certified", lambda _: ["127.0.0.1", "kubernetes", "localhost"])
    text, messages = kubeconfig.made(TEXT, "https://ci.example:16443")
    assert "    server: https://ci.example:16443\n    tls-server-name: kubernetes\n  name: default\n" in text
    assert "K3S_TLS_SAN=ci.example" in messages
    text, messages = kubeconfig.made(TEXT, "https://localhost:16443")
    assert "    server: https://localhost:16443\n  name: default\n" in text
    assert not messages


def test_an_api_server_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    text, messages = kubeconfig.made(TEXT.replace("6443", "1"), "https://ci.example:16443")
    assert "server: https://ci.example:16443" in text
    assert "did not show its certificate" in messages


@pytest.mark.parametrize(
    ("content", "words"), [(None, "yet; `wait-ready`"), (b"\xff", "cannot be read"), (b"a: b\n", "names no server")]
)
def test_what_is_no_kubeconfig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, words: str
) -> None:
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    (tmp_path / "app/k3s").mkdir(parents=True)
    if content is not None:
        (tmp_path / "app/k3s/k3s.yaml").write_bytes(content)
    with pytest.raises(Mistake, match=words):
        kubeconfig.read()
