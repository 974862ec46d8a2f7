"""What a tarball for the public must not have in it, and what has to stay readable."""

from __future__ import annotations

import base64

import pytest
from dind_k3s.redactor import GONE, Redactor


@pytest.mark.parametrize(
    "text",
    [
        "token: SECRET",
        '"token":"SECRET",',
        "K3S_TOKEN=SECRET",
        "k3s server --token SECRET --debug",
        "k3s server --agent-token=SECRET",
        "dockerd\n--token\nSECRET\n",
        "http://user:SECRET@proxy:3128/",
        "http://SECRET@proxy:3128/",
        "mysql://user:SECRET@tcp(host:3306)/k3s",
        "https://user:SE@CRET@host",
        "Authorization: Bearer SECRETSECRET",
        "Authorization: Basic SECRETSECRET",
        "registry password='SECRET'",
        'msg="login failed" password="SECRET with spaces"',
        "  password: SECRET",
        "-----BEGIN RSA PRIVATE KEY-----\nSECRET\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nSECRET",
        "SECRET\n-----END EC PRIVATE KEY-----\nmore",
        "client-key-data: SECRET",
        f"K10{'0f' * 32}::server:SECRET",
        "etcd-s3-secret-key: SECRET",
        "MY_API_KEY=SECRET",
    ],
)
def test_what_stands_behind_a_secrets_name_is_gone(text: str) -> None:
    cleaned = Redactor().clean(text)
    assert GONE in cleaned
    for part in ("SECRET", "CRET@"):
        assert part not in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "level=info msg=ready token ring",
        "token-file: /etc/hosts",
        "authentication-token-webhook=true",
        "docker.io/library/debian:trixie@sha256:0123456789",
        "https://127.0.0.1:6443/readyz",
        'time="2026-11-25T10:00:00Z" level=info msg="API listen on /var/run/docker.sock"',
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redactor().clean(text) == text


def test_known_values_are_gone_wherever_they_stand() -> None:
    redactor = Redactor()
    redactor.learn_environment(
        {
            "K3S_TOKEN": "pass word/1",
            "HTTP_PROXY": "http://me:opensesame@p",
            "DOCKER_ARGS": "--registry-token 'abcdefg'",
        }
    )
    redactor.learn_text("configs:\n  r:\n    auth:\n      password: two words # no\n")
    redactor.learn_text(f'{{"auths": {{"r": {{"auth": "{base64.b64encode(b"me:deep-inside").decode()}"}}}}}}')
    text = "a pass word/1, pass%20word%2F1, opensesame. abcdefg! deep-inside; "
    text += base64.b64encode(b"pass word/1").decode()
    cleaned = redactor.clean(text)
    for secret in ("pass word", "pass%20word", "opensesame", "abcdefg", "deep-inside", "cGFzcyB3b3JkLz"):
        assert secret not in cleaned


def test_a_short_value_goes_only_where_it_is_named() -> None:
    redactor = Redactor()
    redactor.learn_environment({"K3S_TOKEN": "a"})
    assert redactor.clean("K3S_TOKEN=a\nat all") == f"K3S_TOKEN={GONE}\nat all"
