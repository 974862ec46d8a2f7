"""`python -m pipeline`: the command line, and the one place where expected failures are caught."""

from __future__ import annotations

import argparse
import ctypes
import errno
import functools
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TypeVar

from pipeline.core import errors
from pipeline.core.errors import IntentError, PipelineError
from pipeline.core.platforms import Platform

if TYPE_CHECKING:
    from pipeline.core.log import Log
    from pipeline.engine.engine import Engine
    from pipeline.workflow import Run

ROOT = Path(__file__).resolve().parent.parent
_PR_SET_PDEATHSIG = 1  # prctl(2)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}

_BENCHES = ("cli", "size", "smoke", "fetch", "start", "scale", "update", "build")  # in the order of `bench` alone

Kind = TypeVar("Kind", bound=StrEnum)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="python -m pipeline", description="Build, check and release the dind-k3s image.")
    top.add_argument("--versions", type=Path, default=ROOT / "versions.yaml", help="the intent (versions.yaml)")
    top.add_argument("--lock", type=Path, default=ROOT / "versions.lock.yaml", help="the lock")
    top.add_argument("--dist", type=Path, default=ROOT / "dist", help="where results go (dist/)")
    top.add_argument("--cache", type=Path, help="cache folder (DIND_K3S_CACHE, else ~/.cache/dind-k3s)")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    one = command("resolve", "ask upstream what versions.yaml means today and write versions.lock.yaml")
    one.add_argument("--check", action="store_true", help="write nothing; exit 5 when the lock would change")
    one = command("update", "resolve, fetch, read what is in the files, write the lock and tell the change as Markdown")
    one.add_argument("--output", type=Path, metavar="FILE", help="write the Markdown there (default: standard output)")
    one.add_argument("--diff", nargs=2, type=Path, metavar=("OLD", "NEW"), help="only compare two locks")
    one = command("fetch", "bring every file of the lock into the cache, verified")
    one.add_argument("--offline", action="store_true", help="use the network for nothing; fail if a file is missing")
    one = command("vendor", "write a folder that is a mirror of every file of the lock, for sites without internet")
    one.add_argument("folder", type=Path, metavar="FOLDER")
    one.add_argument("--url", help="where the folder will be served (default: its file:// URL)")
    command("mirrors", "measure each origin, mirror and witness, and the base image's registry: latency, speed, files")
    command("pictures", "draw docs/pictures/*.dot as SVG, with Graphviz")
    one = command("bench", "measure the pipeline beside other tools and write docs/benchmarks/")
    one.add_argument(
        "what", nargs="?", choices=(*_BENCHES, "all"), default="all", help="what to measure (default: all)"
    )
    one.add_argument("--runs", type=int, default=5, help="runs of each (medians are told)")
    one.add_argument("--write", action="store_true", help="write docs/benchmarks/<what>.json, .md and .svg")
    one.add_argument("--check", action="store_true", help="exit 12 when a ratio is worse than the committed one")
    _dist(one, "as before the command: where the image is")
    one.add_argument("--rootfs", action="store_true", help="start: with this checkout's rootfs/ over a rehearsed image")
    command("plan", "print the bake file that `build` hands to buildx")
    one = command("build", "fetch what is missing, then build all platforms into dist/image/")
    one.add_argument("--offline", action="store_true", help="use the network for nothing; fail if a file is missing")
    one = command("smoke", "check the built image: files, commands, boot")
    one.add_argument("--platform", action="append", default=[], help="only this platform (repeatable)")
    one.add_argument("--tier", action="append", default=[], help="only this tier: files, commands or boot (repeatable)")
    one.add_argument(
        "--virtual", action="store_true", help="on virtual engines alone, also for this machine's platform"
    )
    one.add_argument("--guest", default="default", help="which virtual engine: default, cgroup-v1 … (docs/smoke.md)")
    one.add_argument("--engine", action="append", default=[], metavar="URL", help="a docker host of another platform")
    _dist(one, "as before the command: where the image is")
    one.add_argument("--keep", action="store_true", help="leave what was booted running, and say how to reach it")
    command("sbom", "write dist/sbom/: what is in the built image, as SPDX and CycloneDX for each platform")
    one = command("scan", "scan what was built, and refuse an image with a known vulnerability that has a fix")
    _scanner(one)
    command("push", "bring the smoked and scanned digest to every repository, without a tag")
    command("tag", "give the pushed and signed digest its tags")
    one = command("release", "all of it, from where it stopped: build, smoke, sbom, scan, push, sign, tag, verify")
    one.add_argument("--dry-run", action="store_true", help="only tell what is left to do")
    one.add_argument("--key", type=Path, metavar="FILE", help="sign with it (default: this workflow's identity)")
    _scanner(one)
    one = command("rollback", "point the moving tags back at an older release")
    one.add_argument("release", metavar="RELEASE", help="a tag that never moves (k3s-…-r1), or sha256:…")
    one.add_argument("--dry-run", action="store_true", help="only tell which tags would be moved")
    one = command("retention", "tell which releases need not be kept; nothing is removed unless --delete")
    one.add_argument("--newest", type=int, default=3, metavar="N", help="keep the newest N of each k3s line (3)")
    one.add_argument("--days", type=int, default=90, metavar="D", help="keep what is younger than D days (90)")
    one.add_argument("--delete", action="store_true", help="remove the others, with everything that only they reach")
    one = command("reproduce", "build a published image once more from its lock, cold, and compare")
    one.add_argument("reference", metavar="IMAGE", help="registry/repository:tag or …@sha256:…")
    one = command("sign", "sign the published index and manifests, attest the SBOMs")
    one.add_argument("--key", type=Path, metavar="FILE", help="a private key (default: this workflow's identity)")
    one = command("verify", "read the published image back without credentials and check it")
    one.add_argument(
        "image", nargs="*", help="any published image: its bytes, signatures and SBOMs (default: what publish made)"
    )
    one.add_argument("--key", type=Path, metavar="FILE", help="signed with the key that belongs to this public one")
    one.add_argument("--identity", help="signed by this identity; * stands for anything (default: our release.yml)")
    one.add_argument("--issuer", help="who vouches for that identity (default: GitHub Actions)")
    one = command("pull", "bring a published image back, without credentials, as build would have left it")
    one.add_argument("reference", metavar="IMAGE", help="registry/repository:tag or …@sha256:…")
    _dist(one, "where it goes (dist/pulled)")
    one = command("notes", "tell a release: what is in it, how big, how it booted, how to check it, what changed")
    one.add_argument(
        "--previous", type=Path, metavar="LOCK", help="versions.lock.yaml of the release before; empty: there was none"
    )
    one.add_argument("--output", type=Path, metavar="FILE", help="write the Markdown there (default: standard output)")
    one = command("rehearse", "the whole release on this machine, reaching only package registries")
    one.add_argument("--k3s", action="append", default=[], metavar="PLATFORM=PATH", help="a real k3s binary")
    one.add_argument("--images", action="append", default=[], metavar="PLATFORM=PATH", help="that k3s's system images")
    one.add_argument("--refresh", action="store_true", help="bring the supplies anew")
    one.add_argument("--no-emulation", action="store_true", help="register no binfmt handler for foreign binaries")
    one.add_argument("--again", action="store_true", help="smoke again what was smoked")
    one.add_argument("--clean", action="store_true", help="remove everything that rehearsals keep, then stop")
    one.add_argument("--phase", choices=("supplies", "release"), help=argparse.SUPPRESS)
    one = command("platforms", "list the platforms of versions.yaml")
    one.add_argument("--json", action="store_true", help="as a JSON list, for a workflow's matrix")
    command("errors", "list the exit codes")
    return top


def _dist(one: argparse.ArgumentParser, text: str) -> None:
    """The option that nox can pass on, which puts everything behind the command."""
    one.add_argument("--dist", type=Path, default=argparse.SUPPRESS, help=text)


def _scanner(one: argparse.ArgumentParser) -> None:
    one.add_argument("--scanner", default="grype", metavar="PROGRAM", help="grype, or what reports as it does (grype)")
    one.add_argument("--least", default="high", help="the least severity that stops a release (high)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Expected failures are printed, anything else keeps its traceback."""
    parsed = parser().parse_args(arguments)
    if os.environ.get("DIND_K3S_DIE_WITH_PARENT"):
        # A killed nox must not leave a rehearsal behind: the kernel tells us when our parent is gone.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _terminate)
    if parsed.command == "errors":
        return _errors()
    if parsed.command == "platforms":
        return _platforms(parsed)
    from pipeline.core.log import Log

    log = Log()
    try:
        return _run(parsed, log)
    except ModuleNotFoundError as error:
        return _lacks(error)
    except PipelineError as error:
        return _tell(error, log)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        return _tell(
            errors.EngineError(
                f"a file cannot be written: {error.strerror}",
                where=str(error.filename or _folder(parsed)),
                next_step="see to its space and rights, or choose other folders: DIND_K3S_CACHE=…, --dist …",
            ),
            log,
        )
    except KeyboardInterrupt:
        log.console.print("interrupted; nothing is left running", markup=False)
        return 130
    finally:
        _summarize(parsed.command, log)


def _summarize(command: str, log: Log) -> None:
    """On GitHub: a timeline of this run's steps on the page of the workflow's run."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    shown = sorted((one for one in log.done if one.depth <= 1), key=lambda one: (one.start, one.depth))
    if not path or not shown:
        return
    from pipeline.core.log import seconds
    from pipeline.core.markdown import gantt

    bars, section = [], ""
    for one in shown:
        section = one.name if one.depth == 0 else section
        bars.append((section, f"{one.mark} {one.name}", round(one.start * 1000), round(one.end * 1000)))
    with Path(path).open("a", encoding="utf-8") as stream:
        stream.write(f"### {command}\n\n{gantt(f'{command}, {seconds(log.elapsed)}', bars)}\n\n")


def _lacks(error: ModuleNotFoundError) -> int:
    """Say which package this Python lacks; returns the exit code. A module of ours that is missing is a bug."""
    if (error.name or "").startswith("pipeline"):
        raise error
    print(
        f"error: this Python lacks {error.name}\n"
        "  next step: run it through nox (nox -s rehearse), or: pip install --require-hashes -r "
        "requirements/pipeline.txt",
        file=sys.stderr,
    )
    return errors.EngineError.exit_code


def _tell(error: PipelineError, log: Log) -> int:
    """Print a failure as a person should see it; returns its exit code."""
    from pipeline.core.log import redact

    first, *rest = map(redact, error.lines())
    log.console.print(f"error: {first}", style="bold red")
    for line in rest:
        log.console.print(line)
    log.console.print(f"  exit code: {error.exit_code} ({error.kind})")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print(f"::error::{first}", file=sys.stderr)
    return error.exit_code


def _folder(parsed: argparse.Namespace) -> Path:
    """The folder that fills up first."""
    from pipeline.core import cache

    return Path(parsed.cache or cache.folder())


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM ends a run as Ctrl-C does: in order."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _platforms(parsed: argparse.Namespace) -> int:
    """The platforms of versions.yaml. The workflows' matrix asks before there is more than requirements/nox.txt."""
    try:
        from pipeline.inputs import versions

        names = [platform.value for platform in versions.read(parsed.versions).platforms]
    except ModuleNotFoundError as error:
        return _lacks(error)
    except PipelineError as error:
        print(f"error: {error}\n  exit code: {error.exit_code} ({error.kind})", file=sys.stderr)
        return error.exit_code
    print(json.dumps(names) if parsed.json else "\n".join(names))
    return 0


def _errors() -> int:
    for kind in sorted(PipelineError.__subclasses__(), key=lambda kind: kind.exit_code):
        print(f"{kind.exit_code:>3}  {kind.kind}: {(kind.__doc__ or '').strip()}")
    return 0


def _run(parsed: argparse.Namespace, log: Log) -> int:
    from pipeline.core import cache
    from pipeline.workflow import Run

    run = Run(
        root=ROOT,
        intent_path=parsed.versions,
        lock_path=parsed.lock,
        dist=parsed.dist.resolve(),
        cache=(parsed.cache or cache.folder()).resolve(),
        log=log,
    )
    try:
        return _dispatch(run, parsed)
    finally:
        run.client.close()


def _dispatch(run: Run, parsed: argparse.Namespace) -> int:
    match parsed.command:
        case "resolve":
            changed = run.resolve(check=parsed.check)
            return errors.LockStale.exit_code if changed and parsed.check else 0
        case "update":
            _update(run, parsed)
        case "vendor":
            run.vendor(parsed.folder, parsed.url)
        case "fetch":
            run.fetch(offline=parsed.offline)
        case "mirrors":
            run.mirrors()
        case "pictures":
            from pipeline import pictures

            pictures.run(ROOT, run.log)
        case "bench":
            _bench(run, parsed)
        case "plan":
            sys.stdout.write(run.plan())
        case "build":
            run.fetch(offline=parsed.offline)
            with ExitStack() as stack:
                run.build(lambda: _engine(run, stack))
        case "smoke":
            _smoke(run, parsed)
        case "sbom":
            run.sbom()
        case "scan":
            run.scan([parsed.scanner], least=parsed.least)
        case "push":
            run.push()
        case "tag":
            run.tag()
        case "release":
            _release(run, parsed)
        case "rollback":
            run.rollback(parsed.release, dry_run=parsed.dry_run)
        case "retention":
            _retention(run, parsed)
        case "reproduce":
            with ExitStack() as stack:
                run.reproduce(parsed.reference, lambda: _engine(run, stack))
        case "verify":
            if parsed.image:
                trust = run.trust(key=parsed.key, identity=parsed.identity, issuer=parsed.issuer)
                run.verify_published(parsed.image, trust)
            else:
                run.verify(())
        case "sign":
            run.sign(parsed.key)
        case "pull":
            given = parsed.dist != ROOT / "dist"
            run.pull(parsed.reference, run.dist if given else run.dist / "pulled")
        case "notes":
            _print(run.notes(_text(parsed.previous) if parsed.previous else None), parsed.output)
        case "rehearse":
            from pipeline.rehearsal import rehearse

            return rehearse.main(run, parsed)
        case other:
            raise AssertionError(other)
    return 0


def _bench(run: Run, parsed: argparse.Namespace) -> None:
    from pipeline.bench import suite

    names = _BENCHES if parsed.what == "all" else (parsed.what,)
    suite.main(run, names, runs=parsed.runs, write=parsed.write, check=parsed.check, rootfs=parsed.rootfs)


def _retention(run: Run, parsed: argparse.Namespace) -> None:
    from datetime import timedelta

    from pipeline.publish.retention import Rule

    if parsed.newest < 1 or parsed.days < 0:
        raise IntentError(
            "--newest is 1 or more, --days is 0 or more", found=f"--newest {parsed.newest} --days {parsed.days}"
        )
    run.retention(Rule(newest=parsed.newest, younger=timedelta(days=parsed.days)), delete=parsed.delete)


def _update(run: Run, parsed: argparse.Namespace) -> None:
    from pipeline.inputs import changes, lock

    refused: PipelineError | None = None
    if parsed.diff:
        old, new = (lock.parse(_text(path), str(path)) for path in parsed.diff)
        said, refused = changes.findings(new)
        text = changes.markdown(old, new, said)
    else:
        text = run.update()
    _print(text, parsed.output)
    if refused is not None:
        raise refused


def _print(text: str, output: Path | None) -> None:
    """To a file, or to standard output."""
    from pipeline.core.records import write_text

    if output:
        write_text(output, text)
    else:
        sys.stdout.write(text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IntentError(f"{path} cannot be read", found=str(error), expected="a versions.lock.yaml") from None


def _engine(run: Run, stack: ExitStack) -> Engine:
    from pipeline.engine import engine

    return stack.enter_context(engine.choose(run.lock, run.cache, run.log))


def _release(run: Run, parsed: argparse.Namespace) -> None:
    from pipeline import steps
    from pipeline.engine import emulation, engines
    from pipeline.smoke.booted import BootOptions

    with ExitStack() as stack:

        @functools.cache
        def engine() -> Engine:
            """One for build and smoke, started when the first of them needs it."""
            return _engine(run, stack)

        def smoke() -> None:
            if os.geteuid() == 0:
                for platform in run.intent.platforms:
                    stack.enter_context(emulation.registered(platform, run.log))
            chosen = engines.Engines(lock=run.lock, cache=run.cache, log=run.log, start=engine)
            run.smoke(chosen, options=lambda *_: BootOptions())

        made = steps.of(run, engine=engine, smoke=smoke, scanner=[parsed.scanner], least=parsed.least, key=parsed.key)
        steps.go(made, run.log, dry_run=parsed.dry_run)


def _smoke(run: Run, parsed: argparse.Namespace) -> None:
    from pipeline.core.records import Image, Tier
    from pipeline.engine import emulation, engines
    from pipeline.smoke.booted import BootOptions

    platforms = [_known(Platform, text, "platform") for text in parsed.platform]
    tiers = [_known(Tier, text, "tier") for text in parsed.tier]
    Image.read(run.dist)  # said before an engine is started for nothing
    guest = engines.guest(parsed.guest)
    virtual = parsed.virtual or guest != engines.guest("default")
    with ExitStack() as stack:
        if os.geteuid() == 0 and not virtual and (not tiers or Tier.COMMANDS in tiers):
            for platform in platforms or run.intent.platforms:
                stack.enter_context(emulation.registered(platform, run.log))
        chosen = engines.Engines(
            lock=run.lock,
            cache=run.cache,
            log=run.log,
            start=lambda: _engine(run, stack),
            others=tuple(parsed.engine),
            guest=guest,
            always_virtual=virtual,
            keep=parsed.keep,
        )
        run.smoke(chosen, platforms=platforms, tiers=tiers, options=lambda *_: BootOptions(keep=parsed.keep))


def _known(kind: type[Kind], text: str, what: str) -> Kind:
    try:
        return kind(text)
    except ValueError:
        raise IntentError(f"{text!r} is not a {what}", expected=", ".join(kind), found=text) from None


if __name__ == "__main__":
    sys.exit(main())
