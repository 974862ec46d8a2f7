"""Credentials of `docker login`, and challenges of registries."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from pipeline.core.errors import RegistryError
from pipeline.oci.credentials import Challenge, Credentials

SECRET = "s3cret:with a colon"


def _config(folder: Path, content: object) -> Path:
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def _auth(username: str = "me", password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("registry", "key"), [("ghcr.io", "ghcr.io"), ("docker.io", "https://index.docker.io/v1/")], ids=["ghcr", "hub"]
)
def test_a_login_is_found(registry: str, key: str, tmp_path: Path) -> None:
    credentials = Credentials.from_docker_config(registry, _config(tmp_path, {"auths": {key: _auth()}}))
    assert credentials == Credentials(username="me", password=SECRET)


@pytest.mark.parametrize("content", [{}, {"auths": {"quay.io": _auth()}}, {"auths": {"ghcr.io": {}}}])
def test_without_a_login(content: object, tmp_path: Path) -> None:
    assert Credentials.from_docker_config("ghcr.io", _config(tmp_path, content)) is None


def test_without_a_config(tmp_path: Path) -> None:
    assert Credentials.from_docker_config("ghcr.io", tmp_path) is None


def test_a_secret_is_not_printed() -> None:
    assert SECRET not in repr(Credentials(username="me", password=SECRET))


@pytest.mark.parametrize("text", ["{" + SECRET, json.dumps({"auths": {"ghcr.io": {"auth": SECRET}}})])
def test_a_broken_config_is_reported_without_its_content(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(RegistryError, match=r"docker login ghcr\.io") as failure:
        Credentials.from_docker_config("ghcr.io", tmp_path)
    assert SECRET not in str(failure.value)


def test_an_identity_token_is_reported(tmp_path: Path) -> None:
    entry = _auth("00000000-0000-0000-0000-000000000000", "") | {"identitytoken": SECRET}
    with pytest.raises(RegistryError, match=r"--password-stdin ghcr\.io") as failure:
        Credentials.from_docker_config("ghcr.io", _config(tmp_path, {"auths": {"ghcr.io": entry}}))
    assert SECRET not in str(failure.value)


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """docker-credential-test: its password is the requested server; or it prints the file `answer`."""
    program = tmp_path / "bin" / "docker-credential-test"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nread -r server\nif [ -f "{tmp_path}/answer" ]; then cat "{tmp_path}/answer"; exit 1; fi\n'
        'printf \'{"ServerURL":"%s","Username":"helped","Secret":"%s"}\' "$server" "$server"\n',
        encoding="utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return tmp_path


@pytest.mark.parametrize(
    ("config", "registry", "asked"),
    [
        ({"credHelpers": {"ghcr.io": "test"}}, "ghcr.io", "ghcr.io"),
        ({"credsStore": "test"}, "ghcr.io", "ghcr.io"),
        ({"credsStore": "test"}, "docker.io", "https://index.docker.io/v1/"),
        ({"credHelpers": {"https://index.docker.io/v1/": "test"}}, "docker.io", "https://index.docker.io/v1/"),
    ],
)
def test_a_helper_is_used(config: object, registry: str, asked: str, helper: Path) -> None:
    credentials = Credentials.from_docker_config(registry, _config(helper, config))
    assert credentials == Credentials(username="helped", password=asked)


def test_a_helper_without_credentials(helper: Path) -> None:
    (helper / "answer").write_text("credentials not found in native keychain\n")
    assert Credentials.from_docker_config("ghcr.io", _config(helper, {"credsStore": "test"})) is None


@pytest.mark.parametrize("answer", [SECRET, '{"Username": "x"}', '{"Username": "<token>", "Secret": "' + SECRET + '"}'])
def test_a_broken_helper(answer: str, helper: Path) -> None:
    (helper / "answer").write_text(answer)
    with pytest.raises(RegistryError, match="docker login") as failure:
        Credentials.from_docker_config("ghcr.io", _config(helper, {"credsStore": "test"}))
    assert SECRET not in str(failure.value)


def test_a_missing_helper(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="docker-credential-absent"):
        Credentials.from_docker_config("ghcr.io", _config(tmp_path, {"credsStore": "absent"}))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            ['Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull,push"'],
            ("bearer", "https://auth.docker.io/token", "registry.docker.io"),
        ),
        (['bearer realm="https://a/t" , service = plain'], ("bearer", "https://a/t", "plain")),
        (['Basic realm="Registry"'], ("basic", "Registry", "")),
        (['Basic realm="x"', 'Bearer realm="https://a/t"'], ("bearer", "https://a/t", "")),
    ],
)
def test_a_challenge_is_parsed(headers: list[str], expected: tuple[str, str, str]) -> None:
    challenge = Challenge.of(headers)
    assert challenge is not None
    assert (challenge.scheme, challenge.realm, challenge.service) == expected


@pytest.mark.parametrize("headers", [[], ["Negotiate"], [""]])
def test_an_unsupported_challenge(headers: list[str]) -> None:
    assert Challenge.of(headers) is None
