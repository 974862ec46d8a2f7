"""The release workflow, job after job: the scripts of its steps as they stand there, with the real pipeline behind nox.

Each job has a separate folder, and gets what the artifacts carry. What is GitHub's has a stub: gh, sudo, the
logins, the identity that signs (a key here); nothing boots, because the image is tiny: the rehearsal boots what was
pulled. The registries are real, one has TLS, both ask for tokens; cosign has the last word.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.records import Release
from pipeline.inputs import lock
from tests.helpers.cosigns import Cosign
from tests.helpers.released import ROOT, Registries, Scene, serving
from tests.repository.test_workflows import artifacts, bash, download, steps, upload

_NOX = """\
#!{python}
import os, sys
name, *rest = sys.argv[2:]
rest = rest[1:] if rest[:1] == ["--"] else rest
with open({calls!r}, "a") as calls:
    print(name, *rest, file=calls)
if name in ("smoke", "fetch", "acceptance"):
    sys.exit()
more = {{"sign": ["--key", {key!r}], "verify": ["--key", {public!r}]}}.get(name, [])
if name == "verify" and not rest:
    more = []
where = ["--versions", {versions!r}, "--lock", {lock!r}, "--dist", "dist", "--cache", {cache!r}]
os.environ["PYTHONPATH"] = {root!r}
os.execv({python!r}, [{python!r}, "-m", "pipeline", *where, name, *rest, *more])
"""


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registries]:
    with serving(tmp_path_factory.mktemp("registries")) as registries:
        yield registries


class Workflow:
    """One run of release.yml."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene, self.folder, self.store = scene, folder, folder / "artifacts"
        self.calls = folder / "nox.calls"
        self.outputs: dict[str, dict[str, str]] = {}
        programs = folder / "programs"
        programs.mkdir(parents=True)
        self.programs = programs
        nox = _NOX.format(
            python=sys.executable,
            calls=str(self.calls),
            key=str(scene.folder / "key"),
            public=str(scene.folder / "key.pub"),
            versions=str(scene.folder / "versions.yaml"),
            lock=str(scene.folder / "versions.lock.yaml"),
            cache=str(scene.folder / "cache"),
            root=str(ROOT),
        )
        listed = json.dumps([{"tagName": "v3"}, {"tagName": "v2"}])
        for name, text in {
            "nox": nox,
            "gh": f'#!/bin/sh\necho "$@" >> {folder / "gh.calls"}\n'
            f"case \"$1 $2\" in 'release list') echo {shlex.quote(listed)} ;; 'release view') exit 1 ;; esac\n",
            "sudo": '#!/bin/sh\nexec "$@"\n',
        }.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)

    def job(self, name: str, **environment: str) -> Path:
        """Run a job's downloads, scripts and uploads; returns its folder."""
        at = self.folder / name
        at.mkdir()
        (at / ".github").symlink_to(ROOT / ".github")
        self._checkout(at)
        for step in (one for one in steps() if (one.file, one.job) == ("release.yml", name)):
            if step.uses == "actions/download-artifact":
                download(step.data["with"], at, self.store)
            elif step.uses == "actions/upload-artifact":
                upload(step.data["with"], at, self.store)
            elif step.run and "if" not in step.data:
                self._script(step.run, name, at, environment)
        return at

    def _checkout(self, at: Path) -> None:
        """A history whose tag v2 has an older lock."""
        older = lock.parse((self.scene.folder / "versions.lock.yaml").read_text(), "")
        text = lock.render(older).replace("v1.37.1+k3s1", "v1.37.0+k3s1")
        (at / "versions.lock.yaml").write_text(text)
        for words in ("init -q", "add versions.lock.yaml", "commit -q -m x", "tag v2"):
            named = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
            subprocess.run(["git", "-C", at, *named, *words.split()], check=True, timeout=30)

    def _script(self, script: str, job: str, at: Path, environment: dict[str, str]) -> None:
        output, summary = at / "output", at / "summary.md"
        done = bash(
            script,
            cwd=at,
            path=self.programs,
            **{name: "" for name in os.environ if name.lower().endswith("_proxy")},
            DOCKER_CONFIG=str(self.scene.registries.docker_config),
            SSL_CERT_FILE=str(self.scene.registries.authority),
            GITHUB_OUTPUT=str(output),
            GITHUB_STEP_SUMMARY=str(summary),
            GITHUB_REPOSITORY="a/b",
            TAG="v3",
            GRYPE=str(self.scene.scanner),
            PLATFORM="linux/amd64",
            **environment,
        )
        assert done.returncode == 0, f"{job}: {script}\n{done.stdout}{done.stderr}"
        if output.exists():
            pairs = (line.partition("=") for line in output.read_text().splitlines())
            self.outputs[job] = {key: value for key, _, value in pairs}


def test_a_release_from_job_to_job(
    registries: Registries, cosigns: dict[int, Cosign], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scene = Scene(registries, tmp_path / "scene", "workflow")
    flow = Workflow(scene, tmp_path / "flow")
    for data in artifacts(".image.yml", "build", "upload-artifact"):
        upload(data, scene.folder, flow.store)
    for architecture in ("amd64", "arm64"):
        report = {"name": f"report-{architecture}", "path": f"dist/smoke/{architecture}.json dist/none.json"}
        upload(report, scene.folder, flow.store)

    flow.job("acceptance")
    flow.job("scan")
    plan = flow.job("dry-run")
    assert scene.tags(scene.names[0]) == {}
    flow.job("push")
    subjects: list[dict[str, Any]] = json.loads(flow.outputs["push"]["subjects"])
    assert subjects == [{"name": str(name), "digest": scene.image.digest.text} for name in scene.names]
    flow.job("sign")
    assert [scene.tags(name) for name in scene.names] == [{}, {}]  # nothing has a name before it is signed
    flow.job("tag")
    first = f"{subjects[0]['name']}@{subjects[0]['digest']}"
    verified = flow.job("verify", IMAGES=flow.outputs["push"]["subjects"], IMAGE=first)
    notes = flow.job("notes")
    flow.job("release")

    record = Release.read(verified / "dist", scene.image.digest)
    assert set(record.verified) == set(record.tagged)
    assert len(record.tagged) == 8
    scene.require_sound()
    notes_text = (notes / "dist" / "notes.md").read_text()
    assert "| k3s | v1.37.1+k3s1 | v1.37.0+k3s1 |" in notes_text
    assert notes_text in (notes / "summary.md").read_text()
    gh = (tmp_path / "flow" / "gh.calls").read_text()
    assert "release create v3 dist/image.json dist/release.json --verify-tag --notes-file dist/notes.md" in gh
    for name in scene.names:
        assert f"attestation verify oci://{name}@{scene.image.digest}" in gh
    called = [line.split()[0] for line in flow.calls.read_text().splitlines()]
    in_order = [
        "fetch",
        "acceptance",
        "scan",
        "release",
        "push",
        "sbom",
        "sign",
        "tag",
        "verify",
        "verify",
        "pull",
        "smoke",
        "notes",
    ]
    assert called == in_order
    assert (plan / "summary.md").exists() is False  # a plan has no steps
    assert "```mermaid" in (tmp_path / "flow" / "push" / "summary.md").read_text()

    # cosign, which has nothing of ours, finds and accepts the signatures in both registries
    public = str(scene.folder / "key.pub")
    for name in scene.names:
        for tag in ("latest", "v1.37"):
            code, printed = cosigns[3].run(
                *("verify", "--key", public, "--insecure-ignore-tlog=true", f"{name}:{tag}"),
                SSL_CERT_FILE=str(registries.authority),
            )
            assert code == 0, printed
            assert scene.image.digest.text in printed


def test_jobs_that_are_run_again_do_nothing_twice(registries: Registries, tmp_path: Path) -> None:
    """«Re-run failed jobs», for every job that writes to a registry."""
    scene = Scene(registries, tmp_path / "scene", "workflow-again")
    for number in range(2):
        flow = Workflow(scene, tmp_path / f"flow{number}")
        upload({"name": "image", "path": "dist/image.json dist/image"}, scene.folder, flow.store)
        upload({"name": "report-x", "path": "dist/smoke dist/none.json"}, scene.folder, flow.store)
        for job in ("scan", "push", "sign", "tag"):
            flow.job(job)
    for name in scene.names:
        tags = scene.tags(name)
        assert set(tags.values()) == {scene.image.digest}
        assert len(tags) == 4
