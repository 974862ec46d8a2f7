"""Stage `verify`: read back what was published, as a stranger would, and hold it against what was built.

None of the code that pushed is used here: own requests, raw bytes, hashlib, and no credentials. Sources:
https://github.com/opencontainers/distribution-spec/blob/main/spec.md, distribution's docs/spec/auth/token.md.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import httpx

from pipeline.core.annotations import KEY
from pipeline.core.errors import IntentError, VerificationFailed
from pipeline.core.log import Log, seconds, size
from pipeline.core.names import INDEX, MANIFEST, REFERENCE_TYPE, ImageName
from pipeline.core.records import Image, Release
from pipeline.http.transport import AGAIN, registry_origin, shown
from pipeline.inputs.lock import Lock

_PAUSES = (1.0, 3.0)  # seconds before the second and third try
_AGAIN = AGAIN | {404}  # a registry may not show yet what it was given
_PROVENANCE = "https://slsa.dev/provenance/"

_T = TypeVar("_T")


def run(
    image: Image,
    lock: Lock,
    dist: Path,
    references: Sequence[str],
    client: httpx.Client,
    log: Log,
    *,
    hashed: dict[ImageName, dict[str, int]] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Read back every reference (`registry/repository:tag`; none: all that were tagged) and record it.

    Every blob is downloaded and hashed, once for each repository; `hashed`: what was so far, to be added to. Raises
    VerificationFailed with expected, found and where; IntentError when there is nothing to verify.
    """
    release = Release.read(dist, image.digest)
    repositories: dict[ImageName, list[str]] = {}
    for text in references or release.tagged:
        name, reference = ImageName.meant(text)
        repositories.setdefault(name, []).append(reference)
    if not repositories:
        raise IntentError("nothing was published yet", next_step="nox -s tag")
    for name, wanted in repositories.items():
        reader = Reader(name, client, sleep)
        started = time.monotonic()
        read = [f"{name}:{reference}" for reference in wanted if not reference.startswith("sha256:")]
        # What is about to be read counts as verified again only when it was read to its end.
        release = replace(release, verified=tuple(one for one in release.verified if one not in read))
        release.write(dist)
        index = b""
        for reference in wanted:
            index = reader.manifest(reference, INDEX)
            full = f"{name}{'@' if reference.startswith('sha256:') else ':'}{reference}"
            _same(f"the digest of {full}", image.digest.text, _sha256(index))
            log.say(f"{full} is {image.digest}")
        seen = hashed.setdefault(name, {}) if hashed is not None else {}
        count = _index(reader, json.loads(index), image, lock, seen, log)
        log.say(f"{name}: {size(count)} read back without credentials in {seconds(time.monotonic() - started)}")
        release = replace(release, verified=(*release.verified, *read))
        release.write(dist)


def _index(reader: Reader, index: Mapping[str, Any], image: Image, lock: Lock, hashed: dict[str, int], log: Log) -> int:
    """Everything below an index; `hashed`: the blobs that were read already. Returns the bytes read."""
    before = sum(hashed.values())
    _same("the media type that the index gives itself", INDEX, index.get("mediaType"))
    said = index.get("annotations") or {}
    _said("the index", image.annotations, said)
    for component, version in lock.versions.items():
        _same(f"{component}'s version on the index", version, said.get(f"{KEY}.{component}"))
    attestations = [entry for entry in index["manifests"] if REFERENCE_TYPE in (entry.get("annotations") or {})]
    images = {_platform(entry): entry for entry in index["manifests"] if entry not in attestations}
    _same("the list of platforms", _listed(lock.platforms), _listed(images))
    _same("the list of platforms", _listed(image.platforms), _listed(images))
    for platform, built in image.platforms.items():
        entry = images[platform.value]
        _same(f"the manifest of {platform}", built.digest.text, entry["digest"])
        manifest = reader.described(entry)
        _said(f"the manifest of {platform}", image.annotations, manifest.get("annotations") or {})
        config = json.loads(reader.blob(manifest["config"]["digest"]))
        _same(f"the platform in the config of {platform}", platform.value, _platform(config))
        _said(f"the config of {platform}", image.annotations, config["config"].get("Labels") or {})
        _hash(reader, manifest, hashed)
        log.say(f"{platform} {entry['digest']}: {len(manifest['layers'])} layers, every byte hashed")
    for platform, built in image.platforms.items():
        kinds: list[str] = []
        for entry in attestations:
            if entry["annotations"].get("vnd.docker.reference.digest") == built.digest.text:
                manifest = reader.described(entry)
                _hash(reader, manifest, hashed)
                layers = [layer.get("annotations") or {} for layer in manifest["layers"]]
                kinds += [layer.get("in-toto.io/predicate-type", "") for layer in layers]
        if not any(kind.startswith(_PROVENANCE) for kind in kinds):
            raise VerificationFailed(
                f"{platform} has no provenance attestation in the index",
                expected=f"one of type {_PROVENANCE}… for {built.digest}",
                found=", ".join(kinds) or "none",
                next_step="nox -s build",
            )
        log.say(f"{platform} attestations: {', '.join(kinds)}")
    return sum(hashed.values()) - before


def _hash(reader: Reader, manifest: Mapping[str, Any], hashed: dict[str, int]) -> None:
    """Download and hash a manifest's blobs that were not hashed yet; `hashed`: digest → bytes."""
    for part in (manifest["config"], *manifest["layers"]):
        if part["digest"] in hashed:
            continue
        length, digest = reader.hash(part["digest"])
        _same(f"the blob {part['digest']}", part["digest"], digest)
        _same(f"the size of {part['digest']}", part["size"], length)
        hashed[part["digest"]] = length


class _Absent(Exception):
    """Nothing is there."""


class Reader:
    """Anonymous reading of one repository."""

    def __init__(self, name: ImageName, client: httpx.Client, sleep: Callable[[float], None]) -> None:
        self._name = name
        self._base = f"{registry_origin(name)}/v2/{name.repository}"
        self._client = client
        self._sleep = sleep
        self._token = ""

    def manifest(self, reference: str, media_type: str) -> bytes:
        """The raw bytes behind a tag or digest; they must be served as that media type."""

        def take(answer: httpx.Response) -> bytes:
            served = answer.headers.get("Content-Type", "").partition(";")[0]
            _same(f"the media type of {self._name}, {reference},", media_type, served)
            return answer.read()

        return self._get(f"manifests/{reference}", media_type, take)

    def optional(self, path: str, accept: str) -> bytes | None:
        """What is at a path below the repository; None when there is nothing, or no such kind of thing."""
        try:
            return self._get(path, accept, httpx.Response.read, absent=(400, 404, 405, 406))
        except _Absent:
            return None

    def described(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest of an index's entry, held against digest, size and type that the entry says."""
        raw = self.manifest(entry["digest"], MANIFEST)
        _same(f"the manifest {entry['digest']}", entry["digest"], _sha256(raw))
        _same(f"the size of {entry['digest']}", entry["size"], len(raw))
        _same(f"the media type that the index gives {entry['digest']}", MANIFEST, entry["mediaType"])
        manifest: dict[str, Any] = json.loads(raw)
        return manifest

    def blob(self, digest: str) -> bytes:
        """A small blob, whole."""
        raw = self._get(f"blobs/{digest}", "*/*", httpx.Response.read)
        _same(f"the blob {digest}", digest, _sha256(raw))
        return raw

    def hash(self, digest: str) -> tuple[int, str]:
        """Length and digest of a blob, streamed."""

        def take(answer: httpx.Response) -> tuple[int, str]:
            state, count = hashlib.sha256(), 0
            for chunk in answer.iter_raw():
                state.update(chunk)
                count += len(chunk)
            return count, f"sha256:{state.hexdigest()}"

        return self._get(f"blobs/{digest}", "*/*", take)

    def _get(self, path: str, accept: str, take: Callable[[httpx.Response], _T], *, absent: Sequence[int] = ()) -> _T:
        """`take` of the answer; tried again when the registry is busy or the connection breaks, also in the middle.

        `absent`: statuses that say that nothing is there, as an answer; raises _Absent.
        """
        url = f"{self._base}/{path}"
        pauses = iter(_PAUSES)
        asked = False
        while True:
            headers = {"Accept": accept, "Accept-Encoding": "identity"}
            if self._token:
                headers["Authorization"] = f"Bearer {self._token}"
            try:
                with self._client.stream("GET", url, headers=headers, follow_redirects=True) as answer:
                    if answer.status_code == 200:
                        return take(answer)
                    if answer.status_code in absent:
                        raise _Absent
                    challenge = answer.headers.get("WWW-Authenticate", "")
                    found, again = f"status {answer.status_code}", answer.status_code in _AGAIN
                if answer.status_code == 401 and not asked and (status := self._ask_token(challenge)):
                    asked = status == 200
                    if asked:
                        continue
                    found, again = f"status {status} of its token server", status in _AGAIN
            except httpx.HTTPError as error:
                found, again = str(error) or type(error).__name__, not isinstance(error, httpx.ConnectError)
            pause = next(pauses, None)
            if not again or pause is None:
                raise VerificationFailed(
                    f"{self._name} does not give {path.partition('/')[0]} to a reader without credentials",
                    expected="status 200",
                    found=found,
                    where=shown(url),
                    next_step="is it published, and is the repository public? Then once more: nox -s verify",
                )
            self._sleep(pause)

    def _ask_token(self, challenge: str) -> int:
        """Ask the token server of the challenge for what anyone may do; its status, 0 without such a server."""
        words = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        if not challenge.lower().startswith("bearer") or "realm" not in words:
            return 0
        scope = {"service": words.get("service", ""), "scope": f"repository:{self._name.repository}:pull"}
        answer = self._client.get(httpx.URL(words["realm"]).copy_merge_params(scope))
        if answer.status_code == 200:
            said = answer.json()
            self._token = said.get("token") or said.get("access_token") or ""
        return answer.status_code


def _platform(entry: Mapping[str, Any]) -> str:
    """`os/architecture` of an index's entry or of a config."""
    at = entry.get("platform", entry)
    return f"{at.get('os')}/{at.get('architecture')}"


def _listed(platforms: Iterable[str]) -> str:
    return ", ".join(sorted(str(platform) for platform in platforms))


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _same(what: str, expected: object, found: object) -> None:
    if expected != found:
        raise VerificationFailed(
            f"{what} is not what was released",
            expected=str(expected),
            found=str(found),
            next_step="do not announce this release; run `nox -s tag` again, and find out who changed the registry",
        )


def _said(where: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Every annotation that was asked for is there, letter for letter."""
    for key, value in expected.items():
        _same(f"{key} on {where}", value, found.get(key))
