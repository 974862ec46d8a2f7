"""docs/verify.md: its commands, as they stand there, against a real registry and a Sigstore of the tests."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import __main__
from pipeline.core import machine
from pipeline.core.log import Log
from pipeline.core.names import ImageName
from pipeline.core.platforms import Platform
from pipeline.core.sboms import Form, path
from pipeline.inputs import versions
from pipeline.signing import signature
from pipeline.signing.signer import keyless
from tests.helpers import sigstores
from tests.helpers.cosigns import Cosign
from tests.helpers.images import Place, running
from tests.helpers.signed import Signed
from tests.helpers.sigstores import Sigstore
from tests.publish.test_keyless import trust

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
IMAGE = "ghcr.io/dind-k3s/dind-k3s"


def commands(*words: str) -> list[str]:
    """The page's commands that begin so."""
    found = [command for command in COMMANDS if command.split()[: len(words)] == list(words)]
    assert found, f"the page has no {' '.join(words)}"
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running(tmp_path_factory.mktemp("registry")) as place:
        yield place


@pytest.fixture
def sigstore(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sigstore]:
    with sigstores.running() as sigstore:
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "x")
        monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{sigstore.url}/token?x=y")
        monkeypatch.setattr(signature, "trust", lambda: sigstore.root)  # in the place of the public one
        yield sigstore


@pytest.fixture
def released(sigstore: Sigstore, place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> Signed:
    words = "-".join("".join(letter if letter.isalnum() else " " for letter in request.node.name.lower()).split())
    made = Signed(place, tmp_path / "dist", place.name(words))
    made.publish()
    made.sign(keyless(sigstore.trust), trust(sigstore))
    return made


@pytest.fixture
def _jq(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users have jq."""
    monkeypatch.setitem(machine.PACKAGES, "jq", "jq")
    machine.ensure(["jq"], Log(quiet=True))


def shell(command: str, released: Signed, cosign: Cosign, sigstore: Sigstore) -> subprocess.CompletedProcess[str]:
    """Run a command of the page for the image of the test; cosign trusts the Sigstore of the test."""
    programs = released.dist.parent / "bin"
    programs.mkdir(exist_ok=True)
    root = released.dist / "root.json"
    root.write_text(sigstore.trusted_root, encoding="utf-8")
    started = f'#!/bin/sh\nverb=$1; shift; exec {cosign.program} "$verb" --trusted-root {root} "$@"\n'
    (programs / "cosign").write_text(
        started if "--key" not in command else started.replace(f" --trusted-root {root}", "")
    )
    (programs / "cosign").chmod(0o755)
    digest = released.image.platforms[Platform.AMD64].digest.text
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", command.replace(IMAGE, str(released.name)).replace("DIGEST", digest)],
        env={"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(cosign.home)},
        cwd=released.dist.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def session(command: str, released: Signed) -> int:
    """A nox session is one call of the pipeline with what stands behind `--`."""
    words = shlex.split(command.replace(IMAGE, str(released.name)))
    assert words[:2] == ["nox", "-s"]
    assert words[3:4] in ([], ["--"])
    folder = ["--dist", str(released.dist)]
    return __main__.main([*folder, words[2], *words[4:]])


def test_cosign_verify(released: Signed, sigstore: Sigstore, cosigns: dict[int, Cosign]) -> None:
    (command,) = (one for one in commands("cosign", "verify") if "--key" not in one)
    done = shell(command, released, cosigns[3], sigstore)
    assert done.returncode == 0, done.stderr
    assert released.image.digest.text in done.stdout
    sigstore.identity = "https://github.com/dind-k3s/dind-k3s/.github/workflows/ci.yml@refs/heads/main"
    other = Signed(released.place, released.dist.parent / "other", released.place.name("of-another-workflow"))
    other.publish()
    other.sign(keyless(sigstore.trust), trust(sigstore, "*"))
    assert shell(command, other, cosigns[3], sigstore).returncode != 0


@pytest.mark.usefixtures("_jq")
@pytest.mark.parametrize("form", Form)
def test_cosign_verify_attestation(
    form: Form, released: Signed, sigstore: Sigstore, cosigns: dict[int, Cosign]
) -> None:
    kind = {Form.SPDX: "spdxjson", Form.CYCLONEDX: "cyclonedx"}[form]
    (command,) = commands("cosign", "verify-attestation", "--type", kind)
    done = shell(command, released, cosigns[3], sigstore)
    assert done.returncode == 0, done.stderr
    written = json.loads((released.dist.parent / f"sbom.{form}.json").read_text(encoding="utf-8"))
    assert written == json.loads(path(released.dist, Platform.AMD64, form).read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", [one for one in commands("nox", "-s", "verify") if "--key" not in one])
def test_verify_in_this_repository(command: str, released: Signed, capfd: pytest.CaptureFixture[str]) -> None:
    assert session(command, released) == 0
    assert f"{released.name}@{released.image.digest} is valid" in capfd.readouterr().err
    released.replace_index(lambda index: index["manifests"][0].update(annotations={"note": "new"}))
    assert session(command, released) == 10
    assert "the index is not signed" in capfd.readouterr().err


def test_a_key_of_your_own(
    place: Place,
    tmp_path: Path,
    sigstore: Sigstore,
    cosigns: dict[int, Cosign],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The block's five commands, one after the other."""
    (block,) = (block for block in BLOCKS if "openssl" in block)
    released = Signed(place, tmp_path / "dist", place.name("own-key"))
    released.publish()
    monkeypatch.chdir(tmp_path)
    intent = (ROOT / "versions.yaml").read_text(encoding="utf-8")
    own = tmp_path / "versions.yaml"
    own.write_text(intent.replace(f"names: [{IMAGE}]", f"names: [{released.name}]"), encoding="utf-8")
    released.image.write(released.dist)
    held = place.served.credentials
    login = base64.b64encode(f"{held.username}:{held.password}".encode()).decode()
    logins = {"auths": {place.served.host: {"auth": login}}}
    (tmp_path / "config.json").write_text(json.dumps(logins), encoding="ascii")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for command in block.splitlines():
        if command.startswith("nox"):
            words = shlex.split(command.replace(IMAGE, str(released.name)))
            assert __main__.main(["--versions", str(own), "--dist", "dist", words[2], *words[4:]]) == 0, command
        else:
            done = shell(command, released, cosigns[3], sigstore)
            assert done.returncode == 0, done.stderr
    other = commands("cosign", "verify", "--key")[0].replace("release.pub", "other.pub")
    (tmp_path / "other.pub").write_bytes(released.key.with_suffix(".pub").read_bytes())
    assert shell(other, released, cosigns[3], sigstore).returncode != 0


def test_the_page_asks_for_what_the_workflow_signs_as() -> None:
    """The same repository, workflow and issuer everywhere, and what GitHub's own check is given."""
    (gh,) = commands("gh", "attestation", "verify")
    words = shlex.split(gh)
    assert words[3] == f"oci://{IMAGE}:latest"
    asked = (ROOT / ".github" / "verify-attestations").read_text(encoding="utf-8")
    for option in ("--repo", "--signer-workflow"):
        assert option in asked
    assert words[words.index("--signer-workflow") + 1].endswith("/.github/workflows/release.yml")
    assert (ROOT / ".github" / "workflows" / "release.yml").is_file()
    name, _, _ = ImageName.parse(IMAGE)
    intent = versions.read(ROOT / "versions.yaml")
    assert name in intent.names
    identities = {one for command in COMMANDS for one in re.findall(r"identity-regexp\s+'\^([^']+)'", command)}
    assert {one.replace("\\", "") for one in identities} == {
        f"{intent.source}/.github/workflows/release.yml@refs/tags/v"
    }
    assert set(re.findall(r"oidc-issuer\s+(\S+)", PAGE)) == {signature.GITHUB_ACTIONS}


def test_every_command_of_the_page_is_run_here_or_cannot_be() -> None:
    """A new one must find its test."""
    known = ("cosign verify", "cosign verify-attestation", "nox -s verify", "nox -s sign", "gh attestation verify")
    for command in COMMANDS:
        assert command.startswith((*known, "openssl genpkey", "openssl pkey")), command
