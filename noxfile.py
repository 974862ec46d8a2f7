"""The menu: `nox -l` lists it, `nox -s NAME` runs one, `nox -s NAME -- …` passes the rest to the pipeline.

Each session is one call of the pipeline or of a tool; nox reports every failure as 1, so scripts that need the exit
codes of docs/exit-codes.md call `python -m pipeline` themselves.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "tests"]
nox.options.error_on_external_run = True

# Words for which readers would search in vain: the field has others ("again", "checked against", "continues", …).
_WORDS = (
    r"\b(anew|whoever|once more|held against|goes on|(is|are|was|were) told|strangers?|(in|with) a sentence|foreign"
    r"|stands for|brings|brought|said so)\b"
)
_CHECKED = ("pipeline", "rootfs", "tests", "Dockerfile", ".github")


def _pipeline(session: nox.Session, *arguments: str) -> None:
    """Run `python -m pipeline` with the locked dependencies; it ends when nox is killed."""
    session.install("--quiet", "--require-hashes", "-r", "requirements/pipeline.txt")
    session.run("python", "-m", "pipeline", *arguments, env={"DIND_K3S_DIE_WITH_PARENT": "1"})


@nox.session
def rehearse(session: nox.Session) -> None:
    """The whole release on this machine, which needs to reach only package registries (Linux, root)."""
    _pipeline(session, "rehearse", *session.posargs)


@nox.session
def release(session: nox.Session) -> None:
    """Build, smoke, scan, push, sign, tag and verify, resuming where it stopped (-- --dry-run prints the plan)."""
    _pipeline(session, "release", *session.posargs)


@nox.session
def resolve(session: nox.Session) -> None:
    """Ask upstream what versions.yaml means today; writes versions.lock.yaml (-- --check only logs)."""
    _pipeline(session, "resolve", *session.posargs)


@nox.session
def update(session: nox.Session) -> None:
    """Renew the lock and print the change as Markdown for a pull request (-- --output FILE, -- --diff OLD NEW)."""
    _pipeline(session, "update", *session.posargs)


@nox.session
def vendor(session: nox.Session) -> None:
    """Write a folder that is a mirror of every file of the lock, for sites without internet (-- FOLDER)."""
    _pipeline(session, "vendor", *session.posargs)


@nox.session
def fetch(session: nox.Session) -> None:
    """Download every file of the lock into the cache, verified."""
    _pipeline(session, "fetch", *session.posargs)


@nox.session
def mirrors(session: nox.Session) -> None:
    """Measure latency, speed and completeness of each origin, mirror and witness, and of the base image's registry."""
    _pipeline(session, "mirrors", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure all, or some: -- build fetch size start (--write, --check)."""
    _pipeline(session, "bench", *session.posargs)


@nox.session
def plan(session: nox.Session) -> None:
    """Print the bake file that build hands to buildx."""
    _pipeline(session, "plan", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the image for all platforms into dist/image/ (-- --offline: without network)."""
    _pipeline(session, "build", *session.posargs)


@nox.session
def smoke(session: nox.Session) -> None:
    """Check what was built: files, commands, boot (-- --platform P --tier T)."""
    _pipeline(session, "smoke", *session.posargs)


@nox.session
def sbom(session: nox.Session) -> None:
    """Write what is in the built image: dist/sbom/<arch>.{spdx,cdx}.json."""
    _pipeline(session, "sbom", *session.posargs)


@nox.session
def scan(session: nox.Session) -> None:
    """Scan what was built with grype, and refuse a known vulnerability that has a fix (-- --scanner PROGRAM)."""
    _pipeline(session, "scan", *session.posargs)


@nox.session
def push(session: nox.Session) -> None:
    """Push the smoked and scanned digest to every repository, without a tag."""
    _pipeline(session, "push", *session.posargs)


@nox.session
def sign(session: nox.Session) -> None:
    """Sign index and manifests and attest the SBOMs as this workflow (-- --key FILE: with a key)."""
    _pipeline(session, "sign", *session.posargs)


@nox.session
def tag(session: nox.Session) -> None:
    """Give the pushed and signed digest its tags."""
    _pipeline(session, "tag", *session.posargs)


@nox.session
def verify(session: nox.Session) -> None:
    """Read back what was published, without credentials; -- IMAGE: check any published image and its signatures."""
    _pipeline(session, "verify", *session.posargs)


@nox.session
def pull(session: nox.Session) -> None:
    """Download a published image into dist/pulled/, without credentials, so that it can be smoked (-- IMAGE)."""
    _pipeline(session, "pull", *session.posargs)


@nox.session
def notes(session: nox.Session) -> None:
    """Write a release's notes: contents, sizes, boot times, what changed (-- --previous LOCK, -- --output FILE)."""
    _pipeline(session, "notes", *session.posargs)


@nox.session
def rollback(session: nox.Session) -> None:
    """Point the moving tags back at an older release (-- RELEASE, -- RELEASE --dry-run)."""
    _pipeline(session, "rollback", *session.posargs)


@nox.session
def retention(session: nox.Session) -> None:
    """List the releases that need not be kept (-- --newest N, -- --days D); removes them with -- --delete."""
    _pipeline(session, "retention", *session.posargs)


@nox.session
def reproduce(session: nox.Session) -> None:
    """Build a published image again from its lock, cold, and name the layers that differ (-- IMAGE)."""
    _pipeline(session, "reproduce", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Test the pipeline and the image's scripts; as root on Linux also against a real engine and registry."""
    session.install("--quiet", "--require-hashes", "-r", "requirements/tests.txt")
    session.run("python", "-m", "pytest", *session.posargs, env={"DIND_K3S_DIE_WITH_PARENT": "1"})


@nox.session(default=False)
def acceptance(session: nox.Session) -> None:
    """Test containers of the image with a real k3s (-- --k3s PATH [--images PATH], -- --release dist)."""
    session.install("--quiet", "--require-hashes", "-r", "requirements/tests.txt")
    given = [argument for argument in session.posargs if argument.startswith("tests/")]
    session.run(
        *("python", "-m", "pytest", *([] if given else ["tests/image"]), *session.posargs),
        env={"DIND_K3S_DIE_WITH_PARENT": "1"},
    )


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, mypy, import-linter, pylint (duplicates), codespell, shell, Dockerfile, YAML; schemas for .github."""
    session.install("--quiet", "--require-hashes", "-r", "requirements/lint.txt")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")
    session.run("lint-imports")
    session.run("pylint", "pipeline", "tests", "rootfs/usr/local/lib/dind-k3s/dind_k3s")
    session.run("codespell")
    # git grep ends with 1 when it finds nothing.
    session.run("git", "grep", "-niE", _WORDS, "--", *_CHECKED, external=True, success_codes=[1])
    session.run("python", "-m", "tests.helpers.shell_files", "shellcheck", "--external-sources")
    session.run("python", "-m", "tests.helpers.shell_files", "shfmt", "-i", "2", "-ci", "-d")
    session.run("hadolint", "Dockerfile")
    session.run("yamllint", "--strict", ".")
    session.run("actionlint")  # with shellcheck over every `run:`
    session.run("zizmor", "--offline", "--quiet", "--strict-collection", "--persona=pedantic", ".github")
    for schema, pattern in {
        "github-workflows": "workflows/*.yml",
        "github-actions": "actions/*/action.yml",
        "dependabot": "dependabot.yml",
    }.items():
        files = sorted(str(path) for path in Path(".github").glob(pattern))
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


@nox.session(default=False)
def pictures(session: nox.Session) -> None:
    """Draw the documentation's pictures: docs/pictures/*.dot to SVG, with Graphviz (Debian's package graphviz)."""
    for source in sorted(Path("docs/pictures").glob("*.dot")):
        # So that a test finds a drawing of another source, also where there is no Graphviz.
        digest = f"-Gclass=sha256-{hashlib.sha256(source.read_bytes()).hexdigest()}"
        session.run("dot", "-Tsvg", digest, "-o", str(source.with_suffix(".svg")), str(source), external=True)


@nox.session(default=False)
def requirements(session: nox.Session) -> None:
    """Renew requirements/*.txt: the newest versions that pyproject.toml allows, with hashes."""
    session.install("--quiet", "uv")
    for name, sources in {
        "nox": ["--group", "nox"],  # what a workflow installs first
        "pipeline": ["pyproject.toml"],
        "tests": ["--group", "test", "pyproject.toml"],
        "lint": ["--group", "test", "--group", "lint", "pyproject.toml"],
    }.items():
        session.run(
            *("uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--upgrade"),
            # extras stay: pip, asked for hashes, takes no `pydantic[email]` for the `pydantic` that is pinned
            *("--no-strip-extras", "--no-emit-index-url", "--custom-compile-command", "nox -s requirements"),
            *("--output-file", f"requirements/{name}.txt", *sources),
        )
