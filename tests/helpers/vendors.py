"""The vendors of a release without a network: an httpx transport with their responses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import product
from pathlib import Path

import httpx

from pipeline import components
from pipeline.core.log import Log
from pipeline.core.names import Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.http import transport
from pipeline.inputs import lock
from pipeline.inputs.lock import Base, Lock
from pipeline.inputs.versions import UPSTREAM, Intent
from pipeline.oci.registry import Registry
from pipeline.resolve import resolve, upstream
from pipeline.resolve.origins import Origins
from tests.helpers.examples import INTENT, PUBLISHED, digest

RECORDED = Path(__file__).parents[1] / "data/upstream"
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
MIRROR = "https://mirrors.example.org/docker-ce"
CHANNELS = {"docker": "29", "buildx": "latest", "compose": "5", "k3s": "stable", "kubectl": "k3s"}
BASE = Base(image=INTENT.base, digest=digest("base"), evidence=PUBLISHED)


@dataclass(frozen=True, kw_only=True)
class Given:
    """One response; httpx.Response would decode its content when it is created."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""


Answer = Given | Exception


@dataclass
class Vendors:
    """Responses by URL, and the requests. Any other URL is 404."""

    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[httpx.Request] = field(default_factory=list)
    cache: Path = Path("/nonexistent")

    def __post_init__(self) -> None:
        self.intent = replace(INTENT, components=CHANNELS, upstream=dict(UPSTREAM))
        self.client = transport.make_client(httpx.MockTransport(self._answer))
        self.log = Log(quiet=True)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.get(str(request.url), Given(status=404))
        if isinstance(answer, Exception):
            raise answer
        body = b"" if request.method == "HEAD" else answer.content
        return httpx.Response(answer.status, headers=dict(answer.headers), stream=httpx.ByteStream(body))

    def gives(
        self, url: str, body: bytes | str, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer a URL with a body."""
        data = body.encode() if isinstance(body, str) else body
        given = {"Content-Length": str(len(data)), **(headers or {})}
        self.answers[url] = Given(status=status, headers=given, content=data)

    def recorded(self, url: str, name: str) -> None:
        """Answer a URL with a file of tests/data/upstream."""
        self.gives(url, (RECORDED / name).read_bytes())

    def release(
        self,
        component: str,
        version: str,
        *,
        days: float = 30,
        text: str = "",
        platforms: Sequence[Platform] = tuple(Platform),
    ) -> None:
        """Publish a component's files and checksums, `days` old."""
        listed: dict[str, str] = {}
        for part, platform in product(components.parts(component, airgap=True), platforms):
            where = components.published(part, version, platform)
            data = f"{part} {version} {platform} {text}".encode()
            headers = {
                "Last-Modified": format_datetime(NOW - timedelta(days=days), usegmt=True),
                "ETag": f'"{Digest.of(data).hex[:16]}"',
            }
            self.gives(f"{UPSTREAM[where.origin]}/{where.path}", data, headers=headers)
            if where.checksums:
                url = f"{UPSTREAM[where.origin]}/{where.checksums}"
                line = f"{Digest.of(data).hex}  {where.name}\n" if where.name else Digest.of(data).hex
                listed[url] = listed.get(url, "") + line
        for url, lines in listed.items():
            self.gives(url, lines)

    def url(self, component: str, version: str, platform: Platform) -> str:
        """Return the URL of a component's file."""
        where = components.published(component, version, platform)
        return f"{UPSTREAM[where.origin]}/{where.path}"

    def refs(self, component: str, *tags: str) -> None:
        """Publish a repository's tags."""
        lines = "".join(f"003f{'1' * 40} refs/tags/{tag}\n" for tag in tags)
        self.gives(
            f"{UPSTREAM['github']}/{upstream.refs_path(component)}", f"001e# service=git-upload-pack\n0000{lines}0000"
        )

    def listing(self, *versions: str, platforms: Sequence[Platform] = tuple(Platform)) -> None:
        """Publish docker's listing."""
        for platform in platforms:
            lines = "".join(f'<a href="docker-{version}.tgz">docker-{version}.tgz</a>\n' for version in versions)
            self.gives(f"{UPSTREAM['docker']}/{upstream.listing_path(platform)}", lines)

    def channels(self, **latest: str) -> None:
        """Publish k3s's channels."""
        data = [{"id": name.replace("_", "."), "latest": version} for name, version in latest.items()]
        self.gives(f"{UPSTREAM['k3s-channels']}/{upstream.CHANNELS_PATH}", json.dumps({"data": data}))

    def complete(self) -> None:
        """Publish one release of everything, a month old."""
        self.listing("29.7.2", "28.5.2")
        self.refs("docker", "docker-v29.7.2", "v28.5.2")
        self.refs("buildx", "v0.36.1", "v0.36.0")
        self.refs("compose", "v5.4.0", "v5.3.1")
        self.refs("k3s", "v1.37.1+k3s1", "v1.37.0+k3s1", "v1.36.5+k3s1")
        self.channels(stable="v1.37.1+k3s1", latest="v1.37.1+k3s1", v1_36="v1.36.5+k3s1")
        for line, version in (("1.37", "v1.37.1"), ("1.36", "v1.36.5")):
            self.gives(f"{UPSTREAM['kubernetes']}/release/stable-{line}.txt", version)
        for component, versions in {
            "docker": ("29.7.2", "28.5.2"),
            "buildx": ("0.36.1", "0.36.0"),
            "compose": ("5.4.0", "5.3.1"),
            "k3s": ("v1.37.1+k3s1", "v1.37.0+k3s1", "v1.36.5+k3s1"),
            "kubectl": ("v1.37.1", "v1.37.0", "v1.36.5"),
        }.items():
            for version in versions:
                self.release(component, version)

    def resolve(
        self,
        previous: Lock | None = None,
        intent: Intent | None = None,
        *,
        now: datetime = NOW,
        token: str | None = None,
        registry_for: Callable[[ImageName], Registry] | None = None,
    ) -> Lock:
        """Run the stage, without apt and the base image; the lock must be valid and canonical."""
        intent = intent or self.intent
        registry_for = registry_for or (lambda name: _never(str(name)))
        origins = Origins(intent, self.client, self.log, token=token)
        system = resolve.System(intent=intent, registry_for=registry_for, cache=self.cache, log=self.log)
        made = resolve.run(origins, system, previous, self.cache, now=now)
        text = lock.render(made)
        assert lock.render(lock.parse(text, "made")) == text
        return made


def _never(name: str) -> Registry:
    raise AssertionError(f"no registry is asked here, not even {name}")


def times(vendors: Vendors, url: str, method: str = "GET") -> int:
    """Return the number of requests to a URL."""
    return sum(request.method == method and str(request.url) == url for request in vendors.asked)
