"""Commands inside containers, against a docker that writes its arguments down: limits, tries, what is cleaned up."""

from __future__ import annotations

import itertools
import json
import stat
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from python_on_whales import DockerClient

from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.core.records import BuiltPlatform, State, Tier, TierReport
from pipeline.engine.engine import Engine
from pipeline.smoke import boot, commands
from pipeline.smoke.booted import Booted, BootOptions
from pipeline.smoke.load import Loaded
from pipeline.smoke.record import Recorder
from tests.helpers.examples import LOCK, VERSIONS, digest

# Replaces docker: a container is there once it was run, runs until it is killed, and its programs answer as it is set.
DOCKER = """#!{python} -SE
import json, pathlib, sys, time
folder = pathlib.Path({folder!r})
argv = sys.argv[1:]
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(argv) + "\\n")
killed = folder / "killed"
answers = json.loads((folder / "answers.json").read_text())
if argv[:2] == ["container", "kill"]:
    killed.touch()
elif argv[0] == "exec":
    if killed.exists():
        sys.exit("container is not running")
    command = " ".join(argv[argv.index("timeout") + 3 :])
    count = sum(json.loads(line) == argv for line in (folder / "calls.jsonl").read_text().splitlines())
    answer = answers.get(command, [[0, "version " + " ".join(answers["versions"])]])
    code, text = answer[min(count, len(answer)) - 1]
    for _ in range(1000 if code == "hang" else 0):
        if killed.exists():
            break
        time.sleep(0.01)
    print(text, file=sys.stderr if code else sys.stdout)
    sys.exit(137 if code == "hang" else code)
elif argv[:2] == ["container", "logs"]:
    print((folder / "log").read_text() if (folder / "log").exists() else "", end="")
elif argv[:2] == ["container", "inspect"]:
    data = {{"Id": "a" * 64, "Image": answers["image"], "State": {{"Running": not killed.exists()}}}}
    if answers["manifest"]:
        data["ImageManifestDescriptor"] = {{"digest": answers["manifest"]}}
    print(json.dumps([data]))
elif argv[1:2] == ["inspect"]:
    print(json.dumps([{{"Id": "sha256:" + "b" * 64, "Name": argv[-1]}}]))
elif argv[:1] == ["run"] or argv[1:2] in (["run"], ["create"]):
    print("a" * 64)
"""
IMAGE = Loaded(
    name="smoke:1",
    platform=Platform.ARM64,
    index=digest("index"),
    built=BuiltPlatform(digest=digest("manifest"), config=digest("config"), size=1),
)


class Fake:
    """The recording docker, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: dict[str, object] = {
            "versions": list(VERSIONS.values()),
            "image": IMAGE.index.text,
            "manifest": IMAGE.built.digest.text,
        }
        executable = folder / "docker"
        executable.write_text(DOCKER.format(python=sys.executable, folder=str(folder)), encoding="utf-8")
        executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
        self.client = DockerClient(client_call=[str(executable)])

    @property
    def engine(self) -> Engine:
        return Engine(docker=self.client, builder=None, description="a recording", platform=IMAGE.platform)

    def commands(self, *, emulated: bool = False) -> TierReport:
        (self.folder / "answers.json").write_text(json.dumps(self.answers))
        (self.folder / "calls.jsonl").unlink(missing_ok=True)
        recorder = Recorder(Tier.COMMANDS, "here", Log(quiet=True))
        commands.run(self.engine, IMAGE, LOCK, recorder, emulated=emulated)
        return recorder.report()

    def logs(self, text: str) -> None:
        """What `docker logs` prints from now on."""
        (self.folder / "answers.json").write_text(json.dumps(self.answers))
        (self.folder / "log").write_text(text)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    def asked(self, *command: str) -> int:
        return sum(call[-len(command) :] == list(command) for call in self.calls)


@pytest.fixture
def docker(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def test_every_command_is_asked_once_in_one_container_that_is_removed(docker: Fake) -> None:
    ended = docker.commands()
    assert ended.state == State.PASSED, ended.reason
    (started,) = [call for call in docker.calls if "run" in call[:2]]
    name = started[started.index("--name") + 1]
    for flags in (["--platform", "linux/arm64"], ["--network", "none"], ["--entrypoint", "sleep"]):
        assert flags[1] in started[started.index(flags[0]) :][:2]
    assert started[-2:] == ["smoke:1", "86400"]
    executed = [call for call in docker.calls if call[0] == "exec"]
    assert {call[1] for call in executed} == {name}
    assert ["timeout", "--kill-after=5", "20", "dockerd", "--version"] in [call[2:] for call in executed]
    assert docker.asked("iptables", "--version") == 1
    assert docker.calls[-1][:2] == ["container", "rm"]
    assert docker.calls[-1][-1] == name


def test_a_foreign_platform_is_not_asked_for_iptables_and_gets_more_time(docker: Fake) -> None:
    assert docker.commands(emulated=True).state == State.PASSED
    assert docker.asked("iptables", "--version") == 0
    assert docker.asked("timeout", "--kill-after=5", "90", "dockerd", "--version") == 1


def test_a_timeout_is_tried_again(docker: Fake) -> None:
    docker.answers["runc --version"] = [[124, ""], [124, ""], [0, "runc version 1.3"]]
    ended = docker.commands()
    assert ended.state == State.PASSED, ended.reason
    assert "runc version 1.3" in next(check.detail for check in ended.checks if check.name == "runc --version")


def test_a_command_that_died_with_its_container_has_not_timed_out(docker: Fake) -> None:
    docker.answers["runc --version"] = [[137, ""]]
    assert docker.commands().reason == "runc --version: runc --version: exit code 137: no output"


def test_three_timeouts_are_a_failure_and_the_others_are_still_asked(docker: Fake) -> None:
    docker.answers["runc --version"] = [[124, ""]]
    ended = docker.commands()
    assert ended.reason == "runc --version: runc --version: no end within 20 s: no output"
    assert docker.asked("timeout", "--kill-after=5", "20", "runc", "--version") == 3
    assert docker.asked("wait-ready", "--help") == 1


def test_a_crash_is_tried_again_only_under_an_emulator(docker: Fake) -> None:
    docker.answers["ctr --version"] = [[139, "Segmentation fault"], [0, "ctr 2"]]
    assert docker.commands(emulated=True).state == State.PASSED
    assert "exit code 139: Segmentation fault" in docker.commands(emulated=False).reason


def test_an_emulator_that_runs_nothing_is_blamed_before_the_image(docker: Fake) -> None:
    docker.answers["uname -m"] = [[1, "exec format error"]]
    ended = docker.commands(emulated=True)
    assert [check.name for check in ended.checks] == ["a trivial program"]
    assert "exec format error" in ended.reason


def test_another_version_than_the_locked_one_is_named(docker: Fake) -> None:
    docker.answers["docker compose version"] = [[0, "Docker Compose version v5.4.01"]]
    reason = docker.commands().reason
    assert reason == "docker compose version: Docker Compose version v5.4.01; expected version 5.4.0"


def test_a_container_of_another_manifest_is_not_asked_at_all(docker: Fake) -> None:
    docker.answers["manifest"] = digest("stale").text
    assert f"the engine runs {digest('stale')}, not {IMAGE.built.digest}" in docker.commands().reason
    docker.answers |= {"manifest": "", "image": digest("other config").text}
    assert "it has another image" in docker.commands().reason
    docker.answers["image"] = IMAGE.built.config.text
    assert docker.commands().state == State.PASSED


def test_what_hangs_beyond_its_own_timeout_is_killed_from_outside(
    docker: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_GRACE", 0.1)
    monkeypatch.setattr(commands, "_SECONDS", 0.2)
    docker.answers["docker --version"] = [["hang", ""]]
    ended = docker.commands()
    assert "no end within 0.2 s, so the container was killed" in ended.reason
    assert [check.name for check in ended.checks][-1] == "docker --version"
    assert docker.asked("wait-ready", "--help") == 0


def test_a_boot_that_fails_leaves_nothing_and_keeps_the_log(docker: Fake) -> None:
    docker.answers["manifest"] = digest("stale").text
    (docker.folder / "answers.json").write_text(json.dumps(docker.answers))
    recorder = Recorder(Tier.BOOT, "native", Log(quiet=True))
    options = BootOptions(extra_environment={"DOCKER_ARGS": "--mtu 1400"}, extra_files=((Path("/x"), "/y"),))
    logs = docker.folder / "smoke" / "boot.log"
    boot.run(docker.engine, IMAGE, LOCK, options, recorder, logs)
    assert "it has another image" in recorder.report().reason
    (started,) = [call for call in docker.calls if "create" in call[:2]]
    name = started[started.index("--name") + 1]
    assert "--privileged" in started
    assert "DOCKER_ARGS=--mtu 1400" in started
    volumes = [after for flag, after in itertools.pairwise(started) if flag == "--volume"]
    assert volumes == [f"{name}-docker:/var/lib/docker", f"{name}-k3s:/app/k3s"]
    assert docker.asked("cp", "/x", f"{name}:/y") == 1
    removed = [call for call in docker.calls if call[1] in ("rm", "remove")]
    assert [call[-1] for call in removed] == [name, f"{name}-docker", f"{name}-k3s"]
    assert "--- doctor" in logs.read_text()


@pytest.mark.parametrize("host", [None, "unix:///its/docker.sock"])
def test_a_container_is_kept_only_where_its_engine_stays(
    docker: Fake, capsys: pytest.CaptureFixture[str], host: str | None
) -> None:
    engine = replace(docker.engine, host=host)
    docker.logs("")
    booted = Booted(engine, IMAGE, BootOptions(keep=True), Log(), docker.folder / "boot.log")
    booted.clean_up(failed=False)
    printed = capsys.readouterr().err
    removed = any(call[1] in ("rm", "remove") for call in docker.calls)
    assert removed == (host is None)
    assert ("the private engine ends with this command" in printed) == removed
    command = f"{docker.folder}/docker exec -it {booted.name} bash"  # this machine may have no other docker
    assert (command in printed) != removed


KEEPER = Path(__file__).resolve().parents[2] / "rootfs/usr/local/lib/dind-k3s/dind_k3s/keeper.py"
LIMIT = "exit code 255: Failed to initialize CSINode after retrying: timed out waiting for the condition"
FLAG = 'exit code 0: Shutdown request received: "kubelet exited: unknown flag: --nonsense (1)"'


def ended(why: str, then: str = ", is started again") -> str:
    return f"[dind-k3s] k3s: ended by itself ({why}){then}"


def test_the_ends_of_k3s_are_those_that_the_image_reports_of_every_container_so_far(docker: Fake) -> None:
    assert 'f"ended by itself ({why}), is started again"' in KEEPER.read_text()
    logs = docker.folder / "boot.log"
    booted = Booted(docker.engine, IMAGE, BootOptions(), Log(quiet=True), logs)
    docker.logs("")
    assert booted.ends_of_k3s() == []
    logs.write_text(
        f"2026-11-30T14:11:46Z {ended(LIMIT)}\n2026-11-30T14:11:46Z [dind-k3s] dockerd: ended by itself (x)\n"
    )
    docker.logs(f"[k3s] the line before\n{ended(FLAG)}\n{ended('exit code 1', ': no room; it is started again')}\n")
    assert booted.ends_of_k3s() == [LIMIT, FLAG, "exit code 1"]


@pytest.mark.parametrize(
    ("ends", "slow", "state", "detail"),
    [
        ([], False, State.PASSED, "not once"),
        ([LIMIT, LIMIT], True, State.PASSED, f"but for 2 starts, on which a fixed time limit ran out: {LIMIT}"),
        ([LIMIT], False, State.FAILED, f"it did 1 times: {LIMIT}"),
        ([LIMIT, FLAG], True, State.FAILED, f"it did 1 times: {FLAG}"),
    ],
)
def test_an_end_of_k3s_is_red_but_for_a_time_limit_on_a_slow_engine(
    ends: list[str], slow: bool, state: State, detail: str
) -> None:
    recorder = Recorder(Tier.BOOT, "virtual", Log(quiet=True))
    machine = SimpleNamespace(ends_of_k3s=lambda: ends, engine=SimpleNamespace(patience=28.0 if slow else 1.0))
    boot.perform([boot.kept_running], cast("Booted", machine), LOCK, recorder)
    (check,) = recorder.report().checks
    assert (check.state, check.detail) == (state, detail)
