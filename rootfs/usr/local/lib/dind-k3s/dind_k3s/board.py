"""What is ready, put together from what each source says, and written where anybody can read it for nothing.

/run/dind-k3s/ready/STAGE   there while the stage is ready; holds the seconds it took
/run/dind-k3s/failed/STAGE  there when waiting for the stage is in vain; holds the reason
/run/dind-k3s/health        "STATE UPTIME TEXT", STATE is ok, starting or failing; for the HEALTHCHECK
/run/dind-k3s/state.json    all of it, for programs (docs/image.md has its keys)

Ages are counted in seconds since boot, because the clock of the day may jump.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from dind_k3s.root import RUN, at, first_process

# What each stage takes: sources in the order in which their problems are reported.
DOCKER = ("docker", "containerd", "container")
KUBERNETES = (*DOCKER, "api", "node", "account", "kubelet", "network")
DNS = (*KUBERNETES, "dns")
COMPONENTS = ("local-storage", "metrics-server", "traefik")  # k3s's own (components.py)
ADDONS = (*KUBERNETES, "images", "manifests")
ALL = (*DNS, *COMPONENTS, "images", "manifests")
STAGES = {
    "docker": DOCKER,
    "k8s": KUBERNETES,
    "dns": DNS,
    **{component: (*KUBERNETES, component) for component in COMPONENTS},
    "addons": ADDONS,
    "all": ALL,
}
ALONE = {"docker": DOCKER, "addons": (*DOCKER, "images"), "all": (*DOCKER, "images")}

SCHEMA = 1


def since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def container_start() -> float:
    """When the container's first process began, in seconds since boot."""
    return int((first_process() / "stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.rename(path)


class Board:
    """Sources report their problems, from any thread; an empty one means that there is none."""

    def __init__(self, stages: Mapping[str, tuple[str, ...]], role: str) -> None:
        self._stages = stages
        self._role = role
        self._began = container_start()
        self._problems = dict.fromkeys(stages["all"], "it has not been looked at yet")
        self._disabled: set[str] = set()
        self._failed: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._losses = dict.fromkeys(stages, 0)
        self._was_ok = False
        self._details: dict[str, object] = {}
        self._written = ""
        self._lock = threading.Lock()
        for folder in ("ready", "failed"):
            at(f"{RUN}/{folder}").mkdir(parents=True, exist_ok=True)

    def problem(self, source: str) -> str:
        """What a source said last."""
        return self._problems.get(source, "")

    def report(self, source: str, problem: str, *, disabled: bool = False, failed: bool = False) -> None:
        """A source's state. `disabled`: there is no such thing here. `failed`: it will not get better by itself."""
        with self._lock:
            if source not in self._problems:
                return
            self._problems[source] = "" if disabled else problem
            (self._disabled.add if disabled else self._disabled.discard)(source)
            if failed:
                self._failed[source] = problem
            else:
                self._failed.pop(source, None)
            self._settle()

    def detail(self, name: str, value: object) -> None:
        """Something for state.json that is no reason to wait."""
        with self._lock:
            self._details[name] = value
            self._settle()

    def heartbeat(self) -> None:
        """Say that somebody still looks; the health check believes nothing older than a minute."""
        with self._lock:
            self._settle()
            with contextlib.suppress(OSError):
                self._write_health()

    def _settle(self) -> None:
        lost: list[str] = []
        back: list[str] = []
        reason = ""
        for stage, sources in self._stages.items():
            problem = next((self._problems[source] for source in sources if self._problems[source]), "")
            if problem and self._since.pop(stage, None) is not None:
                self._losses[stage] += 1
                lost.append(stage)
                reason = reason or problem
            elif not problem and stage not in self._since:
                self._since[stage] = round(since_boot() - self._began, 2)
                back.append(stage)
        self._tell(lost, back, reason)
        with contextlib.suppress(OSError):  # a full disk; the next look tries again
            for stage, sources in self._stages.items():
                self._mark(stage, sources)
            self._write()

    def _mark(self, stage: str, sources: tuple[str, ...]) -> None:
        """The files that wait-ready looks for."""
        flag, mark = at(f"{RUN}/ready/{stage}"), at(f"{RUN}/failed/{stage}")
        if stage not in self._since:
            flag.unlink(missing_ok=True)
        elif not flag.exists():  # new, or keeper.py removed it when the program ended
            flag.write_text(f"{self._since[stage]}\n")
        failure = next((self._failed[source] for source in sources if source in self._failed), "")
        if failure:
            write(mark, f"{failure}\n")
        else:
            mark.unlink(missing_ok=True)

    def _tell(self, lost: list[str], back: list[str], reason: str) -> None:
        if lost:
            print(f"{_list(lost)} not ready any more: {reason}", flush=True)
        for stage in back:
            if not self._losses[stage]:  # a line for each: there are clients that wait for «k8s is ready» in the log
                print(f"{_list([stage])} ready after {self._since[stage]} s", flush=True)
        again = [stage for stage in back if self._losses[stage]]
        if again:
            print(f"{_list(again)} ready again after {self._since[again[-1]]} s", flush=True)

    def _write(self) -> None:
        state = {
            "schema": SCHEMA,
            "role": self._role,
            "health": self._health(),
            "text": self._text(),
            "ready_after": {stage: self._since[stage] for stage in self._stages if stage in self._since},
            "lost": {stage: count for stage, count in self._losses.items() if count},
            "problems": {source: problem for source, problem in self._problems.items() if problem},
            "disabled": sorted(self._disabled),
            **self._details,
        }
        text = json.dumps(state) + "\n"
        if text != self._written:
            write(at(f"{RUN}/state.json"), text)
            self._write_health()
            self._written = text

    def _write_health(self) -> None:
        write(at(f"{RUN}/health"), f"{self._health()} {int(since_boot())} {self._text()}\n")

    def _health(self) -> str:
        self._was_ok = self._was_ok or "all" in self._since
        return "ok" if "all" in self._since else "failing" if self._was_ok or self._failed else "starting"

    def _text(self) -> str:
        problem = next((problem for problem in self._problems.values() if problem), "")
        ready = ", ".join(f"{stage} ready after {after} s" for stage, after in self._since.items() if stage != "all")
        warning = str(self._details.get("warning") or "")
        return "; ".join(part for part in (problem or ready, warning) if part)


def _list(stages: list[str]) -> str:
    names = [stage for stage in stages if stage != "all"] or ["everything"]
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"
