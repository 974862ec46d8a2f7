"""What .github promises: rights, pins, names, the way of the artifacts; its scripts are run where they need no GitHub.

`nox -s lint` sees to the rest: actionlint (expressions, needs, outputs, inputs of reusable workflows, shellcheck of
every `run:`), zizmor and GitHub's schemas.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.__main__ import parser
from pipeline.core import machine
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.core.records import (
    LAYOUT,
    SMOKE,
    Image,
    Release,
    ScanReport,
    SmokeReport,
    Variant,
    require_scanned,
    require_smoked,
)
from pipeline.oci import layout
from tests.helpers import images

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ACTIONS = sorted((GITHUB / "actions").glob("*/action.yml"))
NATIVE = {"linux/amd64": "ubuntu-24.04", "linux/arm64": "ubuntu-24.04-arm"}

workflows = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a job or of a composite action."""

    file: str
    job: str
    data: dict[str, Any]

    @property
    def run(self) -> str:
        """Its script; empty for a step that uses an action."""
        return str(self.data.get("run", ""))

    @property
    def uses(self) -> str:
        """Its action, without the commit."""
        return str(self.data.get("uses", "")).partition("@")[0]


def read(path: Path) -> dict[str, Any]:
    """The YAML of a file, every scalar as text: `on` is no boolean."""
    data = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    assert isinstance(data, dict)
    return data


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    """A workflow's jobs."""
    found = read(path)["jobs"]
    assert found
    return dict(found)


def steps() -> Iterator[Step]:
    """Every step below .github."""
    for path in WORKFLOWS:
        for name, job in jobs(path).items():
            for step in job.get("steps", ()):
                yield Step(file=path.name, job=name, data=step)
    for path in ACTIONS:
        for step in read(path)["runs"]["steps"]:
            yield Step(file=path.parent.name, job="", data=step)


def step(file: str, job: str, word: str) -> Step:
    """The one step of that job with that word in its script."""
    (found,) = [one for one in steps() if (one.file, one.job) == (file, job) and word in one.run]
    return found


# Rights, pins, limits


@workflows
def test_nothing_is_allowed_on_top(path: Path) -> None:
    assert read(path)["permissions"] == {}


@workflows
def test_every_job_says_what_it_may_do(path: Path) -> None:
    for name, job in jobs(path).items():
        assert "permissions" in job, f"{name} of {path.name} says no permissions"


@workflows
def test_every_right_has_its_reason_beside_it(path: Path) -> None:
    granted = [line for line in path.read_text().splitlines() if re.match(r"\s+[a-z-]+: (read|write)\b", line)]
    rights = [right for job in jobs(path).values() for right in job["permissions"]]
    assert len(granted) == len(rights)
    assert [line for line in granted if not re.search(r": (read|write) # \w", line)] == []


def test_the_rights_to_write_are_those_of_the_docs() -> None:
    text = (ROOT / "docs" / "releasing.md").read_text()
    documented = set(re.findall(r"^\| `([\w.-]+)` \| `([\w-]+)` \| `([\w-]+: write)` \| \w", text, re.MULTILINE))
    granted = {
        (path.name, name, f"{right}: {level}")
        for path in WORKFLOWS
        for name, job in jobs(path).items()
        for right, level in job["permissions"].items()
        if level == "write"
    }
    assert documented == granted


@workflows
def test_every_job_ends_some_day(path: Path) -> None:
    for name, job in jobs(path).items():
        if "uses" not in job:  # the called workflow's jobs have theirs
            assert 0 < int(job["timeout-minutes"]) <= 120, name


def test_actions_are_pinned_to_a_commit_with_its_version() -> None:
    pins: dict[str, set[tuple[str, str]]] = {}
    for path in (*WORKFLOWS, *ACTIONS):
        for used in re.findall(r"^\s*(?:- )?uses: (.+)$", path.read_text(), re.MULTILINE):
            if used.startswith("$/"):
                local = ROOT / used.removeprefix("$/")
                assert local.is_file() or (local / "action.yml").is_file(), f"{path.name}: {used}"
                continue
            pinned = re.fullmatch(r"([\w.-]+/[\w./-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", used)
            assert pinned, f"{path.name}: {used} is not OWNER/NAME@COMMIT # vX.Y.Z"
            pins.setdefault(pinned[1], set()).add((pinned[2], pinned[3]))
    assert {action: pinned for action, pinned in pins.items() if len(pinned) > 1} == {}
    assert "actions/checkout" in pins


def test_checkouts_keep_no_credentials() -> None:
    kept = [
        (one.file, one.job)
        for one in steps()
        if one.uses == "actions/checkout" and one.data.get("with", {}).get("persist-credentials") != "false"
    ]
    assert kept == []


def test_scripts_get_values_through_their_environment() -> None:
    assert [(one.file, one.job) for one in steps() if "${{" in one.run] == []


def test_secrets_are_read_only_where_the_environment_guards_them() -> None:
    for path in WORKFLOWS:
        for name, job in jobs(path).items():
            if "secrets." in json.dumps(job):
                assert (path.name, job.get("environment")) == ("release.yml", "release"), name


def test_nothing_is_taken_from_a_cache() -> None:
    """What a release is made of is downloaded and hashed; a cache could be written by another run."""
    for one in steps():
        assert one.uses != "actions/cache", one
        assert "cache" not in one.data.get("with", {}), one


def test_releases_are_never_cancelled_and_older_runs_of_a_pull_request_are() -> None:
    release = read(GITHUB / "workflows" / "release.yml")["concurrency"]
    assert release == {"group": "release", "cancel-in-progress": "false", "queue": "max"}
    ci = read(GITHUB / "workflows" / "ci.yml")["concurrency"]
    assert ci["cancel-in-progress"] == "${{ github.event_name == 'pull_request' }}"
    assert ci["group"] == "ci-${{ github.event.pull_request.number || github.sha }}"


def test_dependabot_groups_and_waits() -> None:
    updates = read(GITHUB / "dependabot.yml")["updates"]
    assert {one["package-ecosystem"] for one in updates} == {"github-actions", "pip"}
    for one in updates:
        assert [group["patterns"] for group in one["groups"].values()] == [["*"]]
        assert int(one["cooldown"]["default-days"]) >= 7
    (actions,) = [one for one in updates if one["package-ecosystem"] == "github-actions"]
    assert "/" in actions["directories"]  # the workflows
    reached = {path for pattern in actions["directories"] if pattern != "/" for path in ROOT.glob(pattern.lstrip("/"))}
    assert {path.parent for path in ACTIONS} <= reached


# What is called


def _sessions() -> dict[str, str | None]:
    """The noxfile's sessions, each with the pipeline's command that it passes its arguments to, if it does."""
    found: dict[str, str | None] = {}
    for node in ast.parse((ROOT / "noxfile.py").read_text()).body:
        if isinstance(node, ast.FunctionDef) and any("session" in ast.unparse(one) for one in node.decorator_list):
            text = ast.unparse(node)
            command = re.search(r"_pipeline\(session, '(\w+)', \*session\.posargs\)", text)
            found[node.name] = command[1] if command else None
    return found


def _calls(text: str) -> Iterator[list[str]]:
    """The words of each simple command of a script that calls nox or the pipeline, from there on."""
    for line in text.replace("\\\n", " ").splitlines():
        if not re.search(r"\b(nox|pipeline)\b", line):
            continue
        words = shlex.split(re.sub(r'^\w+="\$\((.*)\)"$', r"\1", line.strip()), comments=True)
        for number, word in enumerate(words):
            before = words[:number]
            if (word == "nox" and "install" not in before) or (word == "pipeline" and before[-1:] == ["-m"]):
                yield words[number:]


def _given(step: Step, arguments: list[str]) -> Iterator[list[str]]:
    """The arguments, once with each value that somebody may choose by hand for a variable in them, or its default."""
    if not step.job:  # a composite action's: nobody starts it by hand
        yield arguments
        return
    workflow = read(GITHUB / "workflows" / step.file)
    inputs = (workflow["on"].get("workflow_dispatch") or {}).get("inputs", {})
    values: dict[str, list[str]] = {}
    for name, value in workflow["jobs"][step.job].get("env", {}).items():
        if found := re.fullmatch(r"\$\{\{ inputs\.(\w+) \}\}", value):
            about = inputs[found[1]]
            values[f"${name}"] = about.get("options") or [about["default"]]
    yield from map(list, itertools.product(*(values.get(word, [word]) for word in arguments)))


def test_every_nox_call_names_a_session_and_arguments_that_it_takes() -> None:
    sessions = _sessions()
    assert sessions["smoke"] == "smoke"
    assert sessions["lint"] is None
    seen = set()
    for one in steps():
        for call in _calls(one.run):
            if call[0] == "pipeline":
                arguments = call[1:]
            else:
                assert call[1] == "-s", f"{one.file}: {call}"
                assert call[2] in sessions, f"{one.file}: there is no session {call[2]}"
                seen.add(call[2])
                assert call[3:4] in ([], ["--"]), f"{one.file}: {call}"
                command = sessions[call[2]]
                if command is None:  # pytest's arguments, or none
                    continue
                arguments = [command, *call[4:]]
            try:
                for given in _given(one, arguments):
                    parser().parse_args(given)
            except SystemExit:
                pytest.fail(f"{one.file}, {one.job}: the pipeline does not take {shlex.join(arguments)}")
    assert {
        "lint",
        "tests",
        "rehearse",
        "acceptance",
        "build",
        "smoke",
        "scan",
        "push",
        "sign",
        "tag",
        "verify",
        "pull",
        "notes",
        "update",
    } <= seen


def test_ci_runs_what_the_script_runs() -> None:
    script = set(re.findall(r'^"\$\{nox\[@\]\}" -s (\w+)', (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    called = {call[2] for one in steps() if one.file == "ci.yml" for call in _calls(one.run)}
    assert script
    assert script == called


def test_a_release_is_accepted_with_its_own_k3s_before_it_is_pushed() -> None:
    """The image that the build left, the lock's files out of the cache, and no stub in either's place."""
    all_jobs = jobs(GITHUB / "workflows" / "release.yml")
    accepted = [one for one in steps() if (one.file, one.job) == ("release.yml", "acceptance")]
    (image,) = [one.data["with"] for one in accepted if one.uses == "actions/download-artifact"]
    assert image == {"name": "image", "path": "dist"}
    called = [call for one in accepted for call in _calls(one.run)]
    assert called == [["nox", "-s", "fetch"], ["nox", "-s", "acceptance", "--", "--release", image["path"]]]
    assert [name for name, job in all_jobs.items() if "acceptance" in job.get("needs", ())] == ["dry-run", "push"]


# The gate


def test_the_gate_waits_for_every_other_job() -> None:
    all_jobs = jobs(GITHUB / "workflows" / "ci.yml")
    gate = all_jobs.pop("gate")
    assert set(gate["needs"]) == set(all_jobs)
    assert gate["if"] == "always()"


@pytest.mark.parametrize("result", ["failure", "cancelled", "skipped"])
@pytest.mark.parametrize("place", range(3))
def test_the_gate_opens_for_success_alone(result: str, place: int) -> None:
    gate = step("ci.yml", "gate", "RESULTS")
    assert gate.data["env"] == {"RESULTS": "${{ join(needs.*.result, ' ') }}"}
    good = ["success"] * 3
    assert bash(gate.run, RESULTS=" ".join(good)).returncode == 0
    assert bash(gate.run, RESULTS=" ".join([*good[:place], result, *good[place:]])).returncode != 0


# The scripts of steps, run for real


def bash(
    script: str, *, cwd: Path = ROOT, path: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a step's script as GitHub does for `shell: bash`; `path` is a folder of programs that come first."""
    first = [str(folder) for folder in (path, Path(sys.executable).parent) if folder]
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=cwd,
        env={**os.environ, "PATH": ":".join([*first, os.environ["PATH"]]), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def _jq(monkeypatch: pytest.MonkeyPatch) -> None:
    """GitHub's runners have jq."""
    if shutil.which("jq") is None:
        monkeypatch.setitem(machine.PACKAGES, "jq", "jq")
        machine.ensure(["jq"], Log())


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for stubs of gh and sudo, which write down how they were called."""
    folder = tmp_path / "programs"
    folder.mkdir()
    return folder


def _program(folder: Path, name: str, body: str) -> Path:
    """A stub; returns the file with its calls, a line each, arguments between bars."""
    calls = folder / f"{name}.calls"
    program = folder / name
    program.write_text(f"#!/usr/bin/env bash\n(IFS='|'; echo \"$*\") >>{shlex.quote(str(calls))}\n{body}\n")
    program.chmod(0o755)
    return calls


def _output(script: str, cwd: Path, *, runners: str = "") -> str:
    """What a step writes for later ones."""
    file = cwd / "output"
    file.write_text("")
    done = bash(script, cwd=cwd, GITHUB_OUTPUT=str(file), RUNNERS=runners)
    assert done.returncode == 0, done.stderr
    return file.read_text()


@pytest.mark.usefixtures("_jq")
@pytest.mark.parametrize(
    "runners",
    [
        pytest.param(None, id="by default"),
        pytest.param({"linux/amd64": "ubuntu-24.04"}, id="no arm64 runner"),
        pytest.param({"linux/amd64": "ubuntu-24.04", "linux/arm64": "my-board"}, id="our own"),
        pytest.param({}, id="none"),
    ],
)
def test_the_matrix_is_made_of_our_platforms(runners: dict[str, str] | None, tmp_path: Path) -> None:
    made = step(".image.yml", "plan", "platforms --json")
    default = re.fullmatch(r"\$\{\{ inputs\.runners \|\| '(.*)' \}\}", made.data["env"]["RUNNERS"])
    assert default
    assert json.loads(default[1]) == NATIVE
    for name in ("pipeline", "versions.schema.json"):
        (tmp_path / name).symlink_to(ROOT / name)
    text = _output(made.run, tmp_path, runners=default[1] if runners is None else json.dumps(runners))
    key, _, value = text.rstrip("\n").partition("=")
    chosen = NATIVE if runners is None else runners
    assert key == "matrix"
    assert json.loads(value) == [
        {
            "platform": platform.value,
            "architecture": platform.architecture,
            "runner": chosen.get(platform.value, "ubuntu-24.04"),
            "native": platform.value in chosen,
        }
        for platform in Platform
    ]


@pytest.mark.usefixtures("_jq")
def test_a_list_of_runners_that_is_not_json_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    made = step(".image.yml", "plan", "platforms --json")
    done = bash(made.run, cwd=tmp_path, GITHUB_OUTPUT=str(tmp_path / "output"), RUNNERS="ubuntu-24.04-arm")
    assert done.returncode != 0
    assert not (tmp_path / "output").exists()


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """The folder of a job that built, smoked and published the image and its variant."""
    for variant in Variant:
        dist = variant.below(tmp_path / "dist")
        image = images.make(dist, "workflows", variant)
        image.write(dist)
        for report in images.smoked(image):
            report.write(dist)
        tagged = tuple(f"{name}:v1.37{variant.suffix}" for name in ("ghcr.io/a/b", "docker.io/a/b"))
        Release(digest=image.digest, pushed=("ghcr.io/a/b", "docker.io/a/b"), tagged=tagged).write(dist)
    return tmp_path


def _without_variant(built: Path) -> None:
    shutil.rmtree(built / "dist" / "airgap")


@pytest.mark.usefixtures("_jq")
def test_jobs_tell_each_other_the_digest_and_the_names(built: Path) -> None:
    image = Image.read(built / "dist")
    assert _output(step(".image.yml", "build", "digest=").run, built) == f"digest={image.digest}\n"
    script = step("release.yml", "push", "subjects=").run
    digests = [image.digest, Image.read(built / "dist/airgap").digest]
    for expected in (digests, digests[:1]):
        subjects = json.loads(_output(script, built).removeprefix("subjects="))
        assert subjects == [
            {"name": name, "digest": digest.text} for digest in expected for name in ("ghcr.io/a/b", "docker.io/a/b")
        ]
        if expected is digests:
            _without_variant(built)


@pytest.mark.usefixtures("_jq")
@pytest.mark.parametrize(
    ("file", "job", "word", "broken"),
    [(".image.yml", "build", "digest=", "image.json"), ("release.yml", "push", "subjects=", "release.json")],
)
def test_a_record_without_its_value_ends_the_job(file: str, job: str, word: str, broken: str, built: Path) -> None:
    (built / "dist" / broken).write_text("{}")
    done = bash(step(file, job, word).run, cwd=built, GITHUB_OUTPUT=str(built / "output"))
    assert done.returncode != 0
    assert not (built / "output").exists()


@pytest.mark.usefixtures("_jq")
def test_a_release_is_told_once_and_renewed_after(built: Path, programs: Path) -> None:
    script = step("release.yml", "release", "gh release create").run
    calls = _program(programs, "gh", "[[ $2 != view || -e ready ]]")
    assert bash(script, cwd=built, path=programs, TAG="v3").returncode == 0
    view, create = calls.read_text().split("\n", 1)
    assert view == "release|view|v3"
    files = "dist/image.json|dist/release.json|dist/airgap-image.json|dist/airgap-release.json"
    assert create == f"release|create|v3|{files}|--verify-tag|--notes-file|dist/notes.md\n"
    (built / "ready").touch()
    calls.unlink()
    assert bash(script, cwd=built, path=programs, TAG="v3").returncode == 0
    assert calls.read_text().splitlines() == [
        "release|view|v3",
        f"release|upload|v3|{files}|--clobber",
        "release|edit|v3|--notes-file|dist/notes.md",
    ]
    # and as it was without a variant
    _without_variant(built)
    (built / "ready").unlink()
    for left in (built / "dist").glob("airgap-*"):
        left.unlink()
    assert bash(script, cwd=built, path=programs, TAG="v4").returncode == 0
    assert "release|create|v4|dist/image.json|dist/release.json|--verify-tag|" in calls.read_text()


def test_the_files_of_a_release_go_back_to_their_places(tmp_path: Path, programs: Path) -> None:
    found = step("verify.yml", "verify", "gh release download")
    (tmp_path / "dist").mkdir()
    names = ("image.json", "release.json", "airgap-image.json", "airgap-release.json")
    _program(programs, "gh", "\n".join(f"echo {name} >dist/{name}" for name in names))
    assert bash(found.run, cwd=tmp_path, path=programs, TAG="v3").returncode == 0
    for name in names:
        assert (tmp_path / "dist" / name.replace("airgap-", "airgap/")).read_text() == f"{name}\n"
    shutil.rmtree(tmp_path / "dist")
    (tmp_path / "dist").mkdir()
    _program(programs, "gh", "echo 1 >dist/image.json; echo 1 >dist/release.json")
    assert bash(found.run, cwd=tmp_path, path=programs, TAG="v2").returncode == 0
    assert sorted(path.name for path in (tmp_path / "dist").iterdir()) == ["image.json", "release.json"]


@pytest.mark.usefixtures("_jq")
def test_every_repository_is_asked_for_its_attestation(built: Path, programs: Path) -> None:
    image = Image.read(built / "dist")
    calls = _program(programs, "gh", "")
    script = str(GITHUB / "verify-attestations")
    assert bash(script, cwd=built, path=programs, GITHUB_REPOSITORY="a/b").returncode == 0
    asked = [line.split("|") for line in calls.read_text().splitlines()]
    assert [line[:3] for line in asked] == [
        ["attestation", "verify", f"oci://{name}@{one.digest}"]
        for one in (image, Image.read(built / "dist/airgap"))
        for name in ("ghcr.io/a/b", "docker.io/a/b")
    ]
    assert {line[line.index("--signer-workflow") + 1] for line in asked} == {"a/b/.github/workflows/release.yml"}
    # one that is missing, the first already, is a failure
    _program(programs, "gh", "[[ $3 != *ghcr* ]]")
    assert bash(script, cwd=built, path=programs, GITHUB_REPOSITORY="a/b").returncode != 0
    _without_variant(built)
    (built / "dist" / "release.json").write_text('{"digest": "sha256:0", "pushed": []}')
    assert bash(script, cwd=built, path=programs, GITHUB_REPOSITORY="a/b").returncode != 0


def test_the_signer_is_the_workflow_that_signs() -> None:
    (signing,) = {one.file for one in steps() if one.uses == "actions/attest"}
    assert f"/workflows/{signing}" in (GITHUB / "verify-attestations").read_text()


@pytest.mark.parametrize(("listed", "tag"), [("v3\n", "tag=v3\n"), ("", "tag=\n")])
def test_the_newest_release_is_found_or_there_is_none(listed: str, tag: str, tmp_path: Path, programs: Path) -> None:
    _program(programs, "gh", f"printf %s {shlex.quote(listed)}")
    found = step("verify.yml", "newest", "gh release list")
    output = tmp_path / "output"
    done = bash(found.run, cwd=tmp_path, path=programs, GITHUB_OUTPUT=str(output))
    assert done.returncode == 0
    assert output.read_text() == tag


def test_root_gets_the_path_and_no_token(programs: Path) -> None:
    _program(programs, "sudo", 'exec env -i "$@"')
    done = bash(
        f"{GITHUB / 'as-root'} bash -c 'command -v python; env' 'a  b'",
        path=programs,
        CI="true",
        GITHUB_ACTIONS="true",
        GITHUB_TOKEN="secret",
    )
    assert done.returncode == 0, done.stderr
    python, *environment = done.stdout.splitlines()
    assert Path(python).parent == Path(sys.executable).parent
    assert {"CI=true", "GITHUB_ACTIONS=true"} <= set(environment)
    assert "secret" not in done.stdout
    assert bash(f"{GITHUB / 'as-root'} false", path=programs).returncode == 1


def test_a_job_is_root_for_all_its_sessions_or_for_none() -> None:
    """Files that root makes cannot be written by the others."""
    for path in WORKFLOWS:
        for name in jobs(path):
            called = [one.run for one in steps() if (one.file, one.job) == (path.name, name) and "nox -s" in one.run]
            assert len({script.startswith(".github/as-root ") for script in called}) <= 1, (path.name, name)


# The way of the artifacts


def upload(data: dict[str, Any], folder: Path, store: Path) -> None:
    """What upload-artifact does: files below the paths, named from the folder that all paths have in common.

    A path with nothing counts for that folder too; only when there is nothing at all it fails.
    """
    paths = [folder / line for line in str(data["path"]).split()]
    assert any(path.exists() for path in paths), f"nothing of {paths} is there to upload"
    common = Path(os.path.commonpath([path if path.is_dir() and len(paths) == 1 else path.parent for path in paths]))
    for path in paths:
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts):
                target = store / data["name"] / file.relative_to(common)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


def download(data: dict[str, Any], folder: Path, store: Path) -> None:
    """What download-artifact does: one artifact by its name, or all of a pattern into one folder."""
    assert ("name" in data) != (data.get("merge-multiple") == "true")
    chosen = [store / data["name"]] if "name" in data else sorted(store.glob(data["pattern"]))
    assert chosen, f"no artifact {data}"
    for artifact in chosen:
        shutil.copytree(artifact, folder / data.get("path", ""), dirs_exist_ok=True)


def artifacts(file: str, job: str, kind: str) -> list[dict[str, Any]]:
    return [one.data["with"] for one in steps() if (one.file, one.job, one.uses) == (file, job, f"actions/{kind}")]


def test_what_jobs_leave_is_what_later_jobs_need(built: Path, tmp_path: Path) -> None:
    """From build over smoke and scan to push, tag, verify and the GitHub release, each job in a separate folder."""
    store, dist = tmp_path / "artifacts", built / "dist"
    made = {variant: Image.read(variant.below(dist)) for variant in Variant}
    for data in artifacts(".image.yml", "build", "upload-artifact"):
        upload(data, built, store)

    for platform in Platform:
        job = tmp_path / platform.architecture
        for data in artifacts(".image.yml", "smoke", "download-artifact"):
            download(data, job, store)
        for variant, image in made.items():
            at = variant.below(job / "dist")
            assert Image.read(at) == image
            layout.read(at / LAYOUT, image.digest).verify()
            SmokeReport.read(variant.below(dist), platform).write(at)
            (at / SMOKE / f"{platform.architecture}-boot.log").write_text("booted")
        for data in artifacts(".image.yml", "smoke", "upload-artifact"):
            one = {
                key: value.replace("${{ matrix.architecture }}", platform.architecture) for key, value in data.items()
            }
            upload(one, job, store)

    job = tmp_path / "scan"
    for data in artifacts("release.yml", "scan", "download-artifact"):
        download(data, job, store)
    for variant, image in made.items():
        layout.read(variant.below(job / "dist") / LAYOUT, image.digest).verify()
        for report in images.scanned(image):
            report.write(variant.below(job / "dist"))
    for data in artifacts("release.yml", "scan", "upload-artifact"):
        upload(data, job, store)

    for name in ("push", "dry-run"):
        job = tmp_path / name
        for data in artifacts("release.yml", name, "download-artifact"):
            download(data, job, store)
        for variant, image in made.items():
            at = variant.below(job / "dist")
            layout.read(at / LAYOUT, image.digest).verify()
            require_smoked(image, [SmokeReport.read(at, platform) for platform in Platform])
            require_scanned(image, [ScanReport.read(at, platform) for platform in Platform])
            assert sorted(path.name for path in (at / SMOKE).iterdir()) == ["amd64.json", "arm64.json"]

    for name in ("push", "sign", "tag"):
        job = tmp_path / name
        for data in artifacts("release.yml", name, "download-artifact") if name != "push" else ():
            download(data, job, store)
        for variant, image in made.items():
            at = variant.below(job / "dist")
            assert Image.read(at) == image
            Release.read(variant.below(dist), image.digest).write(at)
        for data in artifacts("release.yml", name, "upload-artifact"):
            upload(data, job, store)

    for name in ("verify", "notes"):
        job = tmp_path / name
        for data in artifacts("release.yml", name, "download-artifact"):
            download(data, job, store)
        for variant, image in made.items():
            assert Image.read(variant.below(job / "dist")) == image
            assert Release.read(variant.below(job / "dist"), image.digest).tagged
    (job / "dist" / "notes.md").write_text("notes")
    for data in artifacts("release.yml", "notes", "upload-artifact"):
        upload(data, job, store)
    job = tmp_path / "release"
    for data in artifacts("release.yml", "release", "download-artifact"):
        download(data, job, store)
    for name in ("image.json", "release.json", "airgap/image.json", "airgap/release.json", "notes.md"):
        assert (job / "dist" / name).exists(), name


def test_a_job_that_is_run_again_replaces_what_it_left() -> None:
    for one in steps():
        if one.uses == "actions/upload-artifact":
            assert one.data["with"]["overwrite"] == "true", one
