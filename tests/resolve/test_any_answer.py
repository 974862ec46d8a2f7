"""For any versions.yaml and any responses: an error message or a lock, and a lock can be parsed.

Four hundred of them in every run of the tests (some ten seconds), ten thousand with
`nox -s tests -- --hypothesis-profile=thorough tests/resolve/test_any_answer.py` (some minutes).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pipeline.components import COMPONENTS
from pipeline.core.errors import IntentError, LockStale, PipelineError
from pipeline.core.log import Log, redact
from pipeline.core.names import ImageName
from pipeline.core.platforms import Platform
from pipeline.http import retries
from pipeline.inputs import lock, versions
from pipeline.inputs.evidence import Grade
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import ORIGINS, Intent
from pipeline.oci.registry import Registry
from pipeline.resolve import resolve
from tests.helpers import signing
from tests.helpers.examples import artifact
from tests.helpers.vendors import MIRROR, RECORDED, Given, Vendors

DOCUMENT = yaml.load((Path(__file__).parents[2] / "versions.yaml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
MANIFEST = "https://registry-1.docker.io/v2/library/debian/manifests/trixie-slim"

# What people write, and what they should not have written.
NUMBERS = st.sampled_from(["1000", "-1", "٣", "9" * 5000, "1e3", "", "null"])
DAYS = st.sampled_from(["0", "1", "3", "30", "999"])
VERSIONS = {
    "docker": ["stable", "latest", "29", "28", "29.7", "29.7.2", "28.5.2", "29.9.9", "27"],
    "buildx": ["stable", "latest", "0", "0.36", "0.36.1", "0.37.0", "1"],
    "compose": ["stable", "latest", "5", "5.3", "5.4.0", "9.9.9"],
    "k3s": ["stable", "latest", "v1.37", "v1.36", "v1.37.1+k3s1", "v1.20.0+k3s1", "v1.37.1+standin", "v1.99"],
    "kubectl": ["k3s", "v1.37", "v1.36", "v1.37.1", "v1.99"],
}
ODD = st.sampled_from(["newest", "29.7.2-rc.1", "v1.37.1\n", "²", "29.7.2+k3s1", "V1.37"])
GOOD_URLS = st.sampled_from(["https://x.example", "https://x.example/a/", MIRROR, "https://download.docker.com"])
BAD_URLS = st.sampled_from(
    [
        *("https://[", "https://h:99999", "https://u:p@h", "ftp://h", "https://h?token=s", "https://h#f"),
        *("https://☃.example", "https://h:0", "http:///", "https://" + "a" * 300, "x"),
    ]
)
URLS = st.integers(0, 9).flatmap(lambda roll: BAD_URLS if roll == 0 else GOOD_URLS)
FOLDERS = st.sampled_from(
    ["file:///nowhere", "file://localhost/nowhere/", "file://elsewhere/x", "file:x", "file:///%ff"]
)
ANYTHING = st.one_of(NUMBERS, ODD, BAD_URLS, st.text(max_size=12), st.just([]), st.just({}), st.just(["a", "a"]))


def maybe(value: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Mostly valid, sometimes anything."""
    return st.integers(0, 40).flatmap(lambda roll: ANYTHING if roll == 0 else value)


@st.composite
def intents(draw: st.DrawFn) -> str:
    """Generate the text of a versions.yaml."""
    document = copy.deepcopy(DOCUMENT)
    for component in draw(st.lists(st.sampled_from([*COMPONENTS]), max_size=4)):
        document["components"][component] = draw(maybe(st.sampled_from(VERSIONS[component])))
    if draw(st.booleans()):
        document["platforms"] = draw(
            maybe(st.sampled_from([["linux/amd64"], ["linux/arm64"], list(map(str, Platform))]))
        )
    if draw(st.booleans()):
        keys = st.sampled_from(["default", *COMPONENTS])
        document["cooldown"] = draw(maybe(st.one_of(DAYS, st.dictionaries(keys, DAYS, max_size=2))))
    if draw(st.booleans()):
        one = st.sampled_from(
            [
                ("docker", "29.8.0"),
                ("buildx", "0.37.0"),
                ("k3s", "v1.38.0+k3s1"),
                ("kubectl", "v1.37.1"),
                ("k3s", "stable"),
            ]
        )
        reason = maybe(st.just("it mends something"))
        fix = st.builds(lambda one, reason: {"component": one[0], "version": one[1], "reason": reason}, one, reason)
        document["known-fixes"] = draw(maybe(st.lists(fix, max_size=2)))
    if draw(st.booleans()):
        keys = st.sampled_from(["default", "base", "packages", *COMPONENTS])
        document["policy"] = draw(
            maybe(st.dictionaries(keys, maybe(st.sampled_from(list(map(str, Grade)))), max_size=3))
        )
    for key in draw(st.sampled_from([(), (), (), ("upstream",), ("mirrors",)])):
        upstream = key == "upstream"
        bases = URLS if upstream else st.lists(st.one_of(URLS, FOLDERS), min_size=1, max_size=2)
        origins = st.sampled_from(ORIGINS if upstream else (*ORIGINS, "base"))
        document[key] = draw(maybe(st.dictionaries(origins, bases, max_size=2)))
    if draw(st.integers(0, 4)) == 0:
        document["witnesses"] = draw(maybe(st.fixed_dictionaries({"docker": st.lists(URLS, min_size=1, max_size=2)})))
    if draw(st.integers(0, 30)) == 0:
        document[draw(st.sampled_from([*document, "extra"]))] = draw(ANYTHING)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    if draw(st.integers(0, 40)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.text(max_size=5)) + text[at + draw(st.integers(0, 9)) :]
    return text


PAIR = signing.sign(b"kubectl v1.37.1 linux/amd64 ")
BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"",
            b"stable",
            b"<html>503</html>",
            b"[]",
            b"{}",
            b"null",
            b"[" * 5000,
            b'{"data": [{"id": "stable", "latest": 7}]}',
            b'{"data": [{"id": {}}]}',
            b'{"data": [{"id": "stable", "latest": "v1.99.0+k3s1"}]}',
            b'{"assets": [{}]}',
            b'{"assets": [{"name": "k3s", "digest": "sha256:%s"}]}' % (b"0" * 64),
            b"0" * 64,
            b"0" * 64 + b"  k3s\n",
            b'<a href="docker-29.9.9.tgz">',
            b" refs/tags/docker-v29.9.9\n",
            b" refs/tags/v9.9.9\n",
            b"v1.37.9",
            b"v1.37." + b"9" * 5000,
            PAIR.signature,
            PAIR.certificate,
            b"\xff\xfe\x00",
            b"v1.37.1+k3s1",
            (RECORDED / "recorded/rfc8785-0.1.2.sigstore.json").read_bytes(),
        ]
    ),
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "Content-Length",
            "ETag",
            "Last-Modified",
            "Location",
            "Retry-After",
            "Content-Type",
            "X-RateLimit-Remaining",
            "X-RateLimit-Reset",
            "Docker-Content-Digest",
            "Content-Encoding",
            "WWW-Authenticate",
        ]
    ),
    st.sampled_from(
        [
            "",
            "0",
            "-1",
            "9" * 5000,
            '"x"',
            'W/"x"',
            "Tue, 04 Aug 2026 09:03:51 GMT",
            "Tue, 99 Foo 99999 99:99:99",
            "nonsense",
            "text/html; charset=nonsense",
            "gzip",
            "https://x.example/loop",
            "//[",
            "Bearer realm=x",
            "sha256:0",
            "1e9",
        ]
    ),
    max_size=2,
)
ERRORS: st.SearchStrategy[Callable[[], Exception]] = st.sampled_from(
    [lambda: httpx.ConnectError("refused"), lambda: httpx.ReadTimeout(""), lambda: httpx.RemoteProtocolError("closed")]
)
STATUSES = st.sampled_from([200, 200, 200, 404, 404, 302, 206, 401, 403, 410, 429, 500, 503])


@dataclass(frozen=True)
class Answer:
    """A changed response: the position of its URL among all, and the change."""

    at: int
    error: Callable[[], Exception] | None
    status: int
    body: bytes | None  # None: unchanged
    headers: dict[str, str]


ANSWERS = st.lists(
    st.builds(
        Answer,
        at=st.integers(0, 400),
        error=st.none() | st.none() | st.none() | ERRORS,
        status=STATUSES,
        body=st.none() | BODIES,
        headers=HEADERS,
    ),
    max_size=6,
)


class Silent(Log):
    """A log without output, for ten thousand runs."""

    def say(self, text: str) -> None:
        redact(text)

    warn = say


class World:
    """A complete upstream, and its locks."""

    def __init__(self, cache: Path) -> None:
        self.vendors = Vendors(cache=cache)
        self.vendors.log = Silent()
        self.vendors.complete()
        for component, version in (("docker", "29.8.0"), ("buildx", "0.37.0"), ("k3s", "v1.38.0+k3s1")):
            self.vendors.release(component, version, days=1)
        self.vendors.gives(
            MANIFEST, '{"manifests": []}', headers={"Content-Type": "application/vnd.oci.image.index.v1+json"}
        )
        self.whole = dict(self.vendors.answers)
        self.locked = self.resolve(None, versions.parse(yaml.safe_dump(DOCUMENT), "x"))
        asked = {str(request.url) for request in self.vendors.asked}
        self.urls = sorted(asked | set(self.whole))

    def registry(self, name: ImageName) -> Registry:
        return Registry(self.vendors.client, name, sleep=lambda _: None)

    def resolve(self, previous: Lock | None, intent: Intent) -> Lock:
        return self.vendors.resolve(previous, intent, registry_for=self.registry)

    def change(self, answers: list[Answer]) -> None:
        self.vendors.asked.clear()
        self.vendors.answers = dict(self.whole)
        for answer in answers:
            url = self.urls[answer.at % len(self.urls)]
            if answer.error:
                self.vendors.answers[url] = answer.error()
                continue
            before = self.whole.get(url)
            body = answer.body if answer.body is not None else before.content if isinstance(before, Given) else b""
            self.vendors.gives(url, body, status=answer.status, headers=answer.headers)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(cache / "xdg"))
        patch.setattr(resolve.System, "packages", lambda *_: ((artifact("iptables", Platform.AMD64),), ()))
        patch.setattr(retries, "PAUSES", ())
        yield World(cache)


@pytest.mark.timeout(3600)
@settings(max_examples=max(400, settings().max_examples), deadline=None, suppress_health_check=list(HealthCheck))
@given(text=intents(), answers=ANSWERS, locked=st.sampled_from(["none", "one", "broken"]), at=st.integers(0, 4000))
def test_any_response_gives_an_error_message_or_a_valid_lock(
    world: World, text: str, answers: list[Answer], locked: str, at: int
) -> None:
    previous = None if locked == "none" else world.locked
    if locked == "broken":
        rendered = lock.render(world.locked)
        try:
            previous = lock.parse(rendered[:at] + rendered[at + 1 :], "broken")
        except LockStale:
            previous = None
    world.change(answers)
    try:
        intent = versions.parse(text, "versions.yaml")
    except IntentError:
        event("versions.yaml is refused")
        return
    try:
        made = world.resolve(previous, intent)
    except PipelineError as error:
        event(f"the run stops: {error.kind}")
        return
    event("a lock")
    path = world.vendors.cache / "versions.lock.yaml"
    lock.write(path, made)
    read = lock.read(path, intent)
    assert lock.render(read) == lock.render(made)
    assert "@" not in "".join(file.url for file in read.all_files)
