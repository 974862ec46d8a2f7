"""`python -m pipeline`: the command line, and the one place where expected failures are caught."""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TypeVar

from pipeline.core import errors
from pipeline.core.errors import IntentError, PipelineError
from pipeline.core.platforms import Platform

if TYPE_CHECKING:
    from pipeline.core.log import Log
    from pipeline.workflow import Run

ROOT = Path(__file__).resolve().parent.parent
_PR_SET_PDEATHSIG = 1  # prctl(2)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}

_ALONE = ("platforms", "errors")  # commands that need nothing of a run
_BENCHES = ("size", "fetch", "start", "build")  # in the order of `bench` alone

Kind = TypeVar("Kind", bound=StrEnum)


Body = Callable[["Run", argparse.Namespace], "int | None"]  # returns the exit code; None: 0
Add = Callable[..., object]  # adds an argument to a command: argparse's add_argument
Define = Callable[[str, str, Body], Add]  # name, help text, what it does


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="python -m pipeline", description="Build, check and release the dind-k3s image.")
    top.add_argument("--versions", type=Path, default=ROOT / "versions.yaml", help="the intent (versions.yaml)")
    top.add_argument("--lock", type=Path, default=ROOT / "versions.lock.yaml", help="the lock")
    top.add_argument("--dist", type=Path, default=ROOT / "dist", help="where results go (dist/)")
    top.add_argument("--cache", type=Path, help="cache folder (DIND_K3S_CACHE, else ~/.cache/dind-k3s)")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def define(name: str, text: str, body: Body) -> Add:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(body=body)
        return command.add_argument

    _inputs(define)
    _stages(define)
    _afterwards(define)
    return top


def _inputs(define: Define) -> None:
    add = define("resolve", "ask upstream what versions.yaml means today and write versions.lock.yaml", _resolve)
    add("--check", action="store_true", help="write nothing; exit 5 when the lock would change")
    text = "resolve, fetch, read what is in the files, write the lock and print the change as Markdown"
    add = define("update", text, _update)
    add("--output", type=Path, metavar="FILE", help="write the Markdown there (default: standard output)")
    add("--diff", nargs=2, type=Path, metavar=("OLD", "NEW"), help="only compare two locks")
    text = "download every file of the lock into the cache, verified"
    add = define("fetch", text, lambda run, given: run.fetch(offline=given.offline))
    add("--offline", action="store_true", help="use the network for nothing; fail if a file is missing")
    text = "write a folder that is a mirror of every file of the lock, for sites without internet"
    add = define("vendor", text, lambda run, given: run.vendor(given.folder, given.url))
    add("folder", type=Path, metavar="FOLDER")
    add("--url", help="where the folder will be served (default: its file:// URL)")
    text = "measure each origin, mirror and witness, and the base image's registry: latency, speed, files"
    define("mirrors", text, lambda run, _: run.mirrors())
    add = define("bench", "measure the pipeline and the image, compared with other tools", _bench)
    add("what", nargs="*", choices=(*_BENCHES, "all"), default="all", help="what to measure (default: all)")
    add("--runs", type=int, default=5, help="rounds; the report has their medians")
    add("--write", action="store_true", help="renew docs/benchmarks/<what>.json and .md")
    add("--check", action="store_true", help="exit 12 when a ratio is worse than the committed one")
    _dist(add, "as before the command: where the image is")
    add("--rootfs", action="store_true", help="start: with this checkout's rootfs/ over a rehearsed image")


def _stages(define: Define) -> None:
    define("plan", "print the bake file that `build` hands to buildx", lambda run, _: _print(run.plan(), None))
    add = define("build", "fetch what is missing, then build all platforms into dist/image/", _build)
    add("--offline", action="store_true", help="use the network for nothing; fail if a file is missing")
    add = define("smoke", "check the built image: files, commands, boot", _smoke)
    add("--platform", action="append", default=[], help="only this platform (repeatable)")
    add("--tier", action="append", default=[], help="only this tier: files, commands or boot (repeatable)")
    add("--virtual", action="store_true", help="on virtual engines alone, also for this machine's platform")
    add("--guest", default="default", help="which virtual engine: default, cgroup-v1 … (docs/smoke.md)")
    add("--engine", action="append", default=[], metavar="URL", help="a docker host of another platform")
    _dist(add, "as before the command: where the image is")
    add("--keep", action="store_true", help="leave what was booted running, and say how to reach it")
    text = "write dist/sbom/: what is in the built image, as SPDX and CycloneDX for each platform"
    define("sbom", text, lambda run, _: run.sbom())
    text = "scan what was built, and refuse an image with a known vulnerability that has a fix"
    _scanner(define("scan", text, lambda run, given: run.scan([given.scanner], least=given.least)))
    text = "push the smoked and scanned digest to every repository, without a tag"
    define("push", text, lambda run, _: run.push())
    define("tag", "give the pushed and signed digest its tags", lambda run, _: run.tag())
    text = "all of it, from where it stopped: build, smoke, sbom, scan, push, sign, tag, verify"
    add = define("release", text, _release)
    add("--dry-run", action="store_true", help="only print what is left to do")
    add("--key", type=Path, metavar="FILE", help="sign with it (default: this workflow's identity)")
    _scanner(add)


def _afterwards(define: Define) -> None:
    text = "point the moving tags back at an older release"
    add = define("rollback", text, lambda run, given: run.rollback(given.release, dry_run=given.dry_run))
    add("release", metavar="RELEASE", help="a tag that never moves (k3s-…-r1), or sha256:…")
    add("--dry-run", action="store_true", help="only print which tags would be moved")
    add = define("retention", "list the releases that need not be kept; nothing is removed unless --delete", _retention)
    add("--newest", type=int, default=3, metavar="N", help="keep the newest N of each k3s line (3)")
    add("--days", type=int, default=90, metavar="D", help="keep what is younger than D days (90)")
    add("--delete", action="store_true", help="remove the others, with everything that only they reach")
    text = "build a published image again from its lock, cold, and compare"
    add = define("reproduce", text, lambda run, given: run.reproduce(given.reference))
    add("reference", metavar="IMAGE", help="registry/repository:tag or …@sha256:…")
    text = "sign the published index and manifests, attest the SBOMs"
    add = define("sign", text, lambda run, given: run.sign(given.key))
    add("--key", type=Path, metavar="FILE", help="a private key (default: this workflow's identity)")
    add = define("verify", "read the published image back without credentials and check it", _verify)
    text = "any published image: its bytes, signatures and SBOMs (default: what `tag` has tagged)"
    add("image", nargs="*", help=text)
    add("--key", type=Path, metavar="FILE", help="signed with the key that belongs to this public one")
    add("--identity", help="signed by this identity; * matches anything (default: our release.yml)")
    add("--issuer", help="who vouches for that identity (default: GitHub Actions)")
    add = define("pull", "download a published image, without credentials, as build would have left it", _pull)
    add("reference", metavar="IMAGE", help="registry/repository:tag or …@sha256:…")
    _dist(add, "where it goes (dist/pulled)")
    text = "write a release's notes: what is in it, how big, how it booted, how to check it, what changed"
    add = define("notes", text, lambda run, given: _print(run.notes(_text(given.previous)), given.output))
    text = "versions.lock.yaml of the release before; empty: there was none"
    add("--previous", type=Path, metavar="LOCK", help=text)
    add("--output", type=Path, metavar="FILE", help="write the Markdown there (default: standard output)")
    add = define("rehearse", "the whole release on this machine, reaching only package registries", _rehearse)
    add("--k3s", action="append", default=[], metavar="PLATFORM=PATH", help="a real k3s binary")
    add("--images", action="append", default=[], metavar="PLATFORM=PATH", help="that k3s's system images")
    add("--refresh", action="store_true", help="download the supplies again")
    add("--no-emulation", action="store_true", help="register no binfmt handler for the other architecture")
    add("--again", action="store_true", help="smoke again what was smoked")
    add("--clean", action="store_true", help="remove everything that rehearsals keep, then stop")
    add("--phase", choices=("supplies", "release"), help=argparse.SUPPRESS)
    add = define("platforms", "list the platforms of versions.yaml", _platforms)
    add("--json", action="store_true", help="as a JSON list, for a workflow's matrix")
    define("errors", "list the exit codes", _errors)


def _dist(add: Add, text: str) -> None:
    """The option that nox can pass on, which puts everything behind the command."""
    add("--dist", type=Path, default=argparse.SUPPRESS, help=text)


def _scanner(add: Add) -> None:
    add("--scanner", default="grype", metavar="PROGRAM", help="grype, or what reports as it does (grype)")
    add("--least", default="high", help="the least severity that stops a release (high)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Expected failures are printed, anything else keeps its traceback."""
    parsed = parser().parse_args(arguments)
    if os.environ.get("DIND_K3S_DIE_WITH_PARENT"):
        # A killed nox must not leave a rehearsal behind: the kernel tells us when our parent is gone.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _terminate)
    from pipeline.core.log import Log

    log = Log()
    try:
        return _run(parsed, log)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pipeline"):
            raise
        hint = "run it through nox (nox -s rehearse), or: pip install --require-hashes -r requirements/pipeline.txt"
        return report(errors.EngineError(f"this Python lacks {error.name}", next_step=hint))
    except PipelineError as error:
        return report(error)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        return report(
            errors.EngineError(
                f"a file cannot be written: {error.strerror}",
                where=str(error.filename or _cache(parsed)),  # the folder that fills up first
                next_step="see to its space and rights, or choose other folders: DIND_K3S_CACHE=…, --dist …",
            )
        )
    except KeyboardInterrupt:
        print("interrupted; nothing is left running", file=sys.stderr)
        return 130
    finally:
        summarize(parsed.command, log)


def _run(parsed: argparse.Namespace, log: Log) -> int:
    if parsed.command in _ALONE:
        return int(parsed.body(None, parsed) or 0)
    from pipeline.workflow import Run

    paths = {"intent_path": parsed.versions, "lock_path": parsed.lock}
    with Run(root=ROOT, **paths, dist=parsed.dist.resolve(), cache=_cache(parsed).resolve(), log=log) as run:
        return int(parsed.body(run, parsed) or 0)


def _cache(parsed: argparse.Namespace) -> Path:
    from pipeline.core import cache

    return Path(parsed.cache or cache.folder())


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM ends a run as Ctrl-C does: in order."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def report(error: PipelineError) -> int:
    """Print a failure as a person should see it; returns its exit code."""
    from pipeline.core.log import redact

    first, *rest = map(redact, error.lines())
    bold, plain = ("\033[1;31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    lines = [f"{bold}error: {first}{plain}", *rest, f"  exit code: {error.exit_code} ({error.kind})"]
    if os.environ.get("GITHUB_ACTIONS") == "true":
        lines.append(f"::error::{first}")
    print("\n".join(lines), file=sys.stderr)
    return error.exit_code


def summarize(name: str, log: Log) -> None:
    """On GitHub: a timeline of this command's steps on the page of the workflow's run."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    shown = sorted((step for step in log.done if step.depth <= 1), key=lambda step: (step.start, step.depth))
    if not path or not shown:
        return
    from pipeline.core.log import redact, seconds
    from pipeline.core.markdown import gantt

    bars, section = [], ""
    for step in shown:
        section = redact(step.name) if step.depth == 0 else section
        start, end = (round((at - log.started) * 1000) for at in (step.start, step.end))
        bars.append((section, f"{step.mark} {redact(step.name)}", start, end))
    with Path(path).open("a", encoding="utf-8") as stream:
        stream.write(f"### {name}\n\n{gantt(f'{name}, {seconds(log.elapsed)}', bars)}\n\n")


def _platforms(_run: Run | None, given: argparse.Namespace) -> None:
    """The platforms of versions.yaml. The workflows' matrix asks before there is more than requirements/nox.txt."""
    from pipeline.inputs import versions

    names = [platform.value for platform in versions.read(given.versions).platforms]
    print(json.dumps(names) if given.json else "\n".join(names))


def _errors(_run: Run | None, _given: argparse.Namespace) -> None:
    for kind in sorted(PipelineError.__subclasses__(), key=lambda kind: kind.exit_code):
        print(f"{kind.exit_code:>3}  {kind.kind}: {(kind.__doc__ or '').strip()}")


# What a command needs is imported when it runs: --help shall be quick.


def _resolve(run: Run, given: argparse.Namespace) -> int:
    changed = run.resolve(check=given.check)
    return errors.LockStale.exit_code if changed and given.check else 0


def _update(run: Run, given: argparse.Namespace) -> None:
    from pipeline.inputs import changes, lock

    refused: PipelineError | None = None
    if given.diff:
        old, new = (lock.parse(_text(path), str(path)) for path in given.diff)
        findings, refused = changes.findings(new)
        text = changes.markdown(old, new, findings)
    else:
        text = run.update()
    _print(text, given.output)
    if refused is not None:
        raise refused


def _bench(run: Run, given: argparse.Namespace) -> None:
    from pipeline.bench import suite
    from pipeline.bench.report import Options

    names = _BENCHES if "all" in given.what else tuple(given.what)
    suite.main(run, names, Options(runs=given.runs, rootfs=given.rootfs), write=given.write, check=given.check)


def _build(run: Run, given: argparse.Namespace) -> None:
    run.fetch(offline=given.offline)
    run.build()


def _smoke(run: Run, given: argparse.Namespace) -> None:
    from pipeline.core.records import Tier
    from pipeline.engine import engines
    from pipeline.workflow import SmokeSelection

    selection = SmokeSelection(
        platforms=[_known(Platform, text, "platform") for text in given.platform],
        tiers=[_known(Tier, text, "tier") for text in given.tier] or tuple(Tier),
        hosts=given.engine,
        guest=engines.guest(given.guest),
        virtual=given.virtual,
        keep=given.keep,
    )
    run.smoke(selection)


def _release(run: Run, given: argparse.Namespace) -> None:
    from pipeline import steps

    made = steps.of(run, smoke=run.smoke, scanner=[given.scanner], least=given.least, key=given.key)
    steps.go(made, run.log, dry_run=given.dry_run)


def _retention(run: Run, given: argparse.Namespace) -> None:
    from datetime import timedelta

    from pipeline.publish.retention import Rule

    if given.newest < 1 or given.days < 0:
        raise IntentError(
            "--newest is 1 or more, --days is 0 or more", found=f"--newest {given.newest} --days {given.days}"
        )
    run.retention(Rule(newest=given.newest, younger=timedelta(days=given.days)), delete=given.delete)


def _verify(run: Run, given: argparse.Namespace) -> None:
    if given.image:
        trust = run.trust(key=given.key, identity=given.identity, issuer=given.issuer)
        run.verify_published(given.image, trust)
    else:
        run.verify()


def _pull(run: Run, given: argparse.Namespace) -> None:
    chosen = given.dist != ROOT / "dist"
    run.pull(given.reference, run.dist if chosen else run.dist / "pulled")


def _rehearse(run: Run, given: argparse.Namespace) -> int:
    from pipeline.rehearsal import rehearse

    return rehearse.main(run, given)


def _print(text: str, output: Path | None) -> None:
    """To a file, or to standard output."""
    from pipeline.core.records import write_text

    if output:
        write_text(output, text)
    else:
        sys.stdout.write(text)


def _text(path: Path | None) -> str:
    """The text of a lock; empty without one."""
    try:
        return path.read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise IntentError(f"{path} cannot be read", found=str(error), expected="a versions.lock.yaml") from None


def _known(kind: type[Kind], text: str, what: str) -> Kind:
    try:
        return kind(text)
    except ValueError:
        raise IntentError(f"{text!r} is not a {what}", expected=", ".join(kind), found=text) from None


if __name__ == "__main__":
    sys.exit(main())
