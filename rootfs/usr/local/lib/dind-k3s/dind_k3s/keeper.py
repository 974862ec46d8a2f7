"""PID 1: supervisord, with the things that it has no option for.

- Programs start at once, not after the first second of its loop; signals end its waiting, too.
- Every line of every program also goes to the container's log, with the program's name in front.
- A program that cannot be kept alive ends the container, with an error message and a status that is not 0
  (Supervisor/supervisor#733, #712). On a full volume nothing can live: there it waits for room (room.py).
- The stop fits into the ten seconds of `docker stop`: k3s first, dockerd a second later at the latest, and containers
  that ignore their signal are killed when their grace is over, so that dockerd itself can always end in peace; hundreds
  of published ports are then forgotten instead of taken back one by one (processes.py). With
  DIND_K3S_STOP=drain containers get the time that they asked for instead, as long as `docker stop --timeout` allows.
- SIGHUP has dockerd read its configuration again (reload.py), where supervisord itself restarts everything.
- What supervisord reaps as PID 1 is not worth a line.

Built on supervisor 4.2's own classes and events; `supervisorctl` works as ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dind_k3s.entry_points  # noqa: F401 (it has to come before supervisor)

# isort: split
from supervisor import events, loggers, supervisord
from supervisor.states import SupervisorStates

from dind_k3s import board, k3s_command, problem, processes, room
from dind_k3s.plan import asked, shown
from dind_k3s.root import facts

CONFIG = "/etc/supervisord.conf"
LIBRARY = "/usr/local/lib/dind-k3s"
READY = Path("/run/dind-k3s/ready")
CONTAINERD = Path("/run/docker/containerd/containerd.pid")  # dockerd's child, which it starts again itself
GAVE_UP = 3

# More ends than this within this time, or without having been ready once, are not going to stop by themselves.
ENDS = 5
WITHIN = 300.0

PEACE = 1.0  # that dockerd has to take back published ports in order, once no container runs any more
LAST_RESORT = 4.0, 9.0  # after the grace, and after the stop began: a second before `docker stop` kills everything
HEAD_START = 1.0  # of k3s before dockerd at the stop, so that no pod is started again
# What is not ready any more when a program ends.
STAGES = {"dockerd": tuple(board.STAGES), "k3s": tuple(stage for stage in board.STAGES if stage != "docker")}
LAST = ("dns",)  # others still need it while they end
# The entrypoint blocks these until we can take them. The first three are a stop.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Waker:
    """Makes the supervisor's poll return when a signal comes. The shape is what its loop asks of a dispatcher."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        os.read(self.reader, 4096)

    def handle_error(self) -> None:
        pass


@dataclass
class Outcome:
    """Why the container ends, if it was not stopped."""

    status: int = 0
    farewell: str = ""


class Keeper(supervisord.Supervisor):  # type: ignore[misc]  # supervisor has no types
    """A Supervisor that relays, gives up, and stops within a budget."""

    outcome = Outcome()

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.partial: dict[str, bytes] = defaultdict(bytes)
        self.last_words: dict[str, deque[bytes]] = defaultdict(lambda: deque(maxlen=5))
        self.reasons: dict[str, str] = {}  # why a program is about to end, from its own log
        self.problems: dict[str, str] = {}  # what problem.py's files hold
        self.ended: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=ENDS))
        self.in_vain: dict[str, int] = defaultdict(int)  # ends since a daemon was ready
        self.waits_for_room = ""
        self.signals: deque[str] = deque()  # that came and have not been answered
        self.tidied = False
        self.containerd = 0
        self.containerd_missed = 0
        self.stop_began = 0.0
        self.took: dict[str, float] = {}
        self.killed: int | None = None
        self.hurried = self.dockerd_killed = False
        self.drain = os.environ.get("DIND_K3S_STOP") == "drain"
        self.draining: subprocess.Popen[bytes] | None = None
        self.grace = number("DIND_K3S_STOP_GRACE", 5.0)

    def runforever(self) -> None:
        events.subscribe(events.ProcessLogStdoutEvent, self.relay)
        events.subscribe(events.ProcessStateStartingEvent, self.note_start)
        events.subscribe(events.ProcessStateExitedEvent, self.count_end)
        events.subscribe(events.ProcessStateBackoffEvent, self.count_end)
        events.subscribe(events.ProcessStateFatalEvent, self.give_up)
        events.subscribe(events.ProcessStateStoppedEvent, self.note_stopped)
        events.subscribe(events.SupervisorStoppingEvent, self.begin_stop)
        waker = Waker()
        self.options.get_socket_map()[waker.reader] = waker
        signal.setitimer(signal.ITIMER_REAL, 0)  # of the stop before a reload
        processes.write_rules(really=True)
        for number in (signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda number, _: self.signals.append(signal.Signals(number).name))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for group in sorted(self.process_groups.values()):
            group.transition()
        try:
            super().runforever()
        finally:
            self.tell_stop()

    # Logs

    def relay(self, event: Any) -> None:
        """Whole lines only; the rest waits for its end."""
        name = event.process.config.name
        *lines, self.partial[name] = (self.partial[name] + event.data).split(b"\n")
        if len(self.partial[name]) > 65536:
            lines.append(self.partial.pop(name))
        if lines:
            self.last_words[name].extend(lines)
            self.listen(name, lines)
            prefix = f"[{name}] ".encode()
            write(b"".join(prefix + line + b"\n" for line in lines))

    def listen(self, name: str, lines: list[bytes]) -> None:
        """Keep the reason that a daemon gives for its end: the first one, because others follow from it."""
        if name not in STAGES:
            return
        for line in lines:
            if problem.REJECTED in line:
                taken = problem.name_taken()
                if self.report(name, taken):
                    say(name, taken)
            elif name not in self.reasons and (reason := problem.reason(line.decode(errors="replace"))):
                self.reasons[name] = reason

    def report(self, name: str, text: str) -> bool:
        """Write a daemon's problem where wait-ready and doctor look; whether it is another one than before."""
        if name not in STAGES or self.problems.get(name) == text:
            return False
        self.problems[name] = text
        problem.write(name, text)
        return True

    def forget_problem(self, name: str) -> None:
        if self.problems.pop(name, None):
            problem.path(name).unlink(missing_ok=True)

    # Giving up

    def note_start(self, event: Any) -> None:
        self.reasons.pop(event.process.config.name, None)

    def why(self, process: Any) -> str:
        """How a program ended, and its own words about it: the reason, else its last error, else its last line."""
        if process.exitstatus == -1:
            return "killed by a signal"
        status = (
            process.spawnerr.partition(" (")[0] if process.exitstatus is None else f"exit code {process.exitstatus}"
        )
        name = process.config.name
        lines = [line.decode(errors="replace") for line in reversed(self.last_words[name]) if line.strip()]
        words = [self.reasons.get(name, ""), *map(problem.error, lines), *(shown(line, 400) for line in lines[:1])]
        return ": ".join([status, *[*filter(None, words)][:1]])

    def count_end(self, event: Any) -> None:
        if self.stop_began or (isinstance(event, events.ProcessStateExitedEvent) and event.expected):
            return
        name = event.process.config.name
        not_ready(name)
        self.forget_containerd(name)
        ends = self.ended[name]
        why = self.why(event.process)
        if full := room.problem():
            self.report(name, full)
            if self.waits_for_room != full.split(" ")[0]:
                say(name, f"ended by itself ({why}): {full}; it is started again when there is room")
            self.waits_for_room = full.split(" ")[0]
            ends.clear()
            self.in_vain.pop(name, None)
            return
        self.waits_for_room = ""
        ends.append(time.monotonic())
        self.in_vain[name] += name in STAGES
        self.report(name, f"{name} ended by itself ({why})")
        say(name, f"ended by itself ({why}), is started again")
        if self.in_vain[name] == ENDS or (len(ends) == ENDS and ends[-1] - ends[0] < WITHIN):
            self.give_up(event)

    def forget_containerd(self, program: str) -> None:
        if program == "dockerd":
            self.containerd = self.containerd_missed = 0
            CONTAINERD.unlink(missing_ok=True)

    def watch_containerd(self) -> None:
        """Report its end; dockerd starts another one within half a minute."""
        if self.containerd and not Path(f"/proc/{self.containerd}").exists():
            self.containerd_missed += 1
            # It ends with dockerd, too; the second look is after the end of that one was noticed.
            if self.containerd_missed == 2 and not self.stop_began:
                say("containerd", "ended by itself, dockerd starts it again; until then no container can be started")
                self.containerd = 0
        if not self.containerd:
            with contextlib.suppress(OSError, ValueError):
                pid = int(CONTAINERD.read_text())
                self.containerd = pid if Path(f"/proc/{pid}").exists() else 0
                self.containerd_missed = 0

    def give_up(self, event: Any) -> None:
        if self.stop_began or self.outcome.status:
            return
        name = event.process.config.name
        self.outcome.status = GAVE_UP
        self.outcome.farewell = (
            f"{name} could not be kept alive, so this container ends ({self.why(event.process)}); its log is"
            f" /app/logs/{name}.log{suspects(name)}"
        )
        say("error", self.outcome.farewell)
        if name not in self.reasons:
            for line in self.last_words[name]:
                say("error", f"  {line.decode(errors='replace')}")
        self.options.mood = SupervisorStates.SHUTDOWN

    # The stop

    def begin_stop(self, _event: Any) -> None:
        self.stop_began = time.monotonic()
        budget = "all the time that they asked for" if self.drain else f"{self.grace:g} s"
        say("stop", f"k3s, then containers (they get {budget}), then dockerd")
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, HEAD_START, 0.5)

    def ordered_stop_groups_phase_1(self) -> None:
        if self.drain and not self.drained():
            return
        super().ordered_stop_groups_phase_1()
        if time.monotonic() - self.stop_began >= HEAD_START:
            for group in self.stop_groups:
                if group.config.name not in LAST:
                    group.stop_all()

    def drained(self) -> bool:
        """Whether k3s has ended, and then the containers, each in its own time (drain.py)."""
        k3s = self.process_groups.get("k3s")
        if k3s is not None and k3s.get_unstopped_processes():
            k3s.stop_all()
            return False
        if self.draining is None:
            self.draining = subprocess.Popen([sys.executable, "-I", "-S", LIBRARY, "drain"])
        return self.draining.poll() is not None

    def tick(self, now: float | None = None) -> None:
        super().tick(now)
        while self.signals:
            self.answer(self.signals.popleft())
        for name in {*self.problems, *self.in_vain} & STAGES.keys():
            if (READY / STAGES[name][0]).exists():
                self.forget_problem(name)
                self.in_vain.pop(name, None)
        if self.waits_for_room and not room.problem():
            self.waits_for_room = ""
        self.watch_containerd()
        if not self.tidied and (READY / "k8s").exists():
            self.tidied = True
            (k3s,) = self.process_groups["k3s"].processes.values()
            subprocess.Popen([sys.executable, "-I", "-S", LIBRARY, "old-data", str(k3s.pid)])
        if self.stop_began and not self.drain:
            self.hurry(time.monotonic() - self.stop_began)

    def hurry(self, passed: float) -> None:
        """Hold the stop to its budget: the containers' grace, then what dockerd may take to put all away."""
        if self.killed is None and passed >= self.grace:
            self.killed = processes.kill(processes.first_of_containers())
        if not self.hurried and (self.killed is not None or (passed >= PEACE and not processes.first_of_containers())):
            self.hurried = True
            processes.write_rules(really=False)
        (dockerd,) = self.process_groups["dockerd"].processes.values()
        if dockerd.pid and not self.dockerd_killed and passed >= max(self.grace + LAST_RESORT[0], LAST_RESORT[1]):
            self.dockerd_killed = True
            say("stop", f"dockerd did not end in {passed:.1f} s and is killed")
            dockerd.kill(signal.SIGKILL)

    def answer(self, name: str) -> None:
        """A signal that would end another program."""
        if name != "SIGHUP" or self.stop_began:
            say("signal", f"{name} was ignored")
            return
        (dockerd,) = self.process_groups["dockerd"].processes.values()
        subprocess.Popen([sys.executable, "-I", "-S", LIBRARY, "reload", str(dockerd.pid), *sys.argv[1:]])

    def note_stopped(self, event: Any) -> None:
        name = event.process.config.name
        not_ready(name)
        self.forget_problem(name)
        self.forget_containerd(name)
        if self.stop_began:
            self.took[name] = time.monotonic() - self.stop_began

    def tell_stop(self) -> None:
        if not self.stop_began:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)  # python ends without its handler, and under --init it would be fatal
        messages = [f"{name} {took:.1f} s" for name, took in self.took.items() if name in STAGES]
        if self.killed:
            messages.append(f"{self.killed} containers did not end in {self.grace:g} s and were killed")
        say("stop", f"done after {time.monotonic() - self.stop_began:.1f} s ({', '.join(messages)})")


def not_ready(program: str) -> None:
    """What depends on it; the watcher would notice in its own time."""
    for stage in STAGES.get(program, ()):
        (READY / stage).unlink(missing_ok=True)


def suspects(name: str) -> str:
    """What the user has set for this program, and only the program itself can check."""
    sources = {"dockerd": ("DOCKER_ARGS", "DOCKER_DRIVER"), "k3s": ("K3S_ARGS",)}.get(name, ())
    given = [source for source in sources if os.environ.get(source)]
    if name == "k3s" and k3s_command.command():
        given.append("the container's command")
    return f"; is it {' or '.join(given)}?" if given else ""


def number(name: str, default: float) -> float:
    try:
        return float(os.environ.get(name) or default)
    except ValueError:
        say("stop", f"{name} is not a number of seconds; {default:g} it is")
        return default


def say(step: str, text: str) -> None:
    write(f"[dind-k3s] {step}: {text}\n".encode())


def write(data: bytes) -> None:
    try:
        while data:
            data = data[os.write(1, data) :]
    except OSError:
        pass  # no reader is left; the files have it all


def quiet_logs() -> None:
    """A disk without room for a log file is no reason for tracebacks, nor to stop listening to a program."""
    roll_over = loggers.RotatingFileHandler.doRollover

    def guarded(handler: Any) -> None:
        with contextlib.suppress(OSError):
            roll_over(handler)

    loggers.RotatingFileHandler.doRollover = guarded
    loggers.Handler.handleError = lambda _handler: None


def export_switches() -> None:
    """What supervisord.conf asks for: which programs start by themselves."""
    os.environ["DIND_K3S_START_DNS"] = str("dns" in facts()).lower()
    os.environ["DIND_K3S_START_K3S"] = str(not asked(os.environ, "K3S_DISABLE")).lower()


def main() -> int:
    export_switches()
    quiet_logs()
    supervisord.Supervisor = Keeper  # go() makes one of these at each (re)load
    supervisord.main(["--nodaemon", "--configuration", CONFIG])
    if Keeper.outcome.status:
        say("error", Keeper.outcome.farewell)  # again, as the last line
    return Keeper.outcome.status


if __name__ == "__main__":
    sys.exit(main())
