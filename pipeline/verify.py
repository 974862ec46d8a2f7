"""Stage `verify`: read back what was published, as a stranger would, and hold it against what was built.

None of the code that pushed is used here: own requests, raw bytes, hashlib, and no credentials. Sources:
https://github.com/opencontainers/distribution-spec/blob/main/spec.md, distribution's docs/spec/auth/token.md.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from pipeline.bake import KEY
from pipeline.errors import IntentError, VerificationFailed
from pipeline.lock import Lock
from pipeline.log import Log, seconds, size
from pipeline.oci import INDEX, MANIFEST, REFERENCE_TYPE, ImageName
from pipeline.release import Image, Release
from pipeline.transport import shown


def run(image: Image, lock: Lock, dist: Path, references: Sequence[str], client: httpx.Client, log: Log) -> None:
    """Read back every reference (`registry/repository:tag`; none: all that were tagged) and record it.

    Raises VerificationFailed with expected, found and where; IntentError when there is nothing to verify.
    """
    release = Release.read(dist, image.digest)
    wanted = tuple(references) or release.tagged
    if not wanted:
        raise IntentError("nothing was published yet", next_step="nox -s publish")
    for name in {str(ImageName.parse(text)[0]) for text in wanted}:
        reader = _Reader(ImageName.parse(name)[0], client)
        of_one = [text for text in wanted if str(ImageName.parse(text)[0]) == name]
        started = time.monotonic()
        for reference in of_one:
            tag = ImageName.parse(reference)[1] or "latest"
            index = reader.fetch(f"manifests/{tag}", INDEX)
            _same(f"{reference}: digest", image.digest.text, _sha256(index))
            log.say(f"{reference} is {image.digest}")
        count = _index(reader, json.loads(index), image, lock, log)
        log.say(f"{name}: {size(count)} read back without credentials in {seconds(time.monotonic() - started)}")
        release = replace(release, verified=tuple(dict.fromkeys([*release.verified, *of_one])))
        release.write(dist)


def _index(reader: _Reader, index: Mapping[str, Any], image: Image, lock: Lock, log: Log) -> int:
    """Everything below an index; returns the bytes read."""
    _same("media type of the index", INDEX, index.get("mediaType"))
    _said("the index", image.annotations, index.get("annotations", {}))
    for component, version in lock.versions.items():
        _same(f"{component}'s version on the index", version, index["annotations"].get(f"{KEY}.{component}"))
    entries = [entry for entry in index["manifests"] if REFERENCE_TYPE not in entry.get("annotations", {})]
    attested = {
        entry["annotations"].get("vnd.docker.reference.digest")
        for entry in index["manifests"]
        if entry.get("annotations", {}).get(REFERENCE_TYPE) == "attestation-manifest"
    }
    found = {f"{entry['platform']['os']}/{entry['platform']['architecture']}": entry for entry in entries}
    _same("platforms", sorted(lock.platforms), sorted(found))
    count = 0
    for platform, built in image.platforms.items():
        entry = found[platform]
        _same(f"{platform}: digest", built.digest.text, entry["digest"])
        if entry["digest"] not in attested:
            raise VerificationFailed(f"{platform}: its provenance attestation is not in the index")
    for entry in index["manifests"]:
        raw = reader.fetch(f"manifests/{entry['digest']}", MANIFEST)
        _same(f"{entry['digest']}: bytes", entry["digest"], _sha256(raw))
        _same(f"{entry['digest']}: size", entry["size"], len(raw))
        manifest = json.loads(raw)
        platform_entry = entry in entries
        if platform_entry:
            _said(f"manifest {entry['digest']}", image.annotations, manifest.get("annotations", {}))
            config = json.loads(reader.fetch(f"blobs/{manifest['config']['digest']}", "*/*"))
            _same("architecture of the config", entry["platform"]["architecture"], config["architecture"])
            _said("labels of the config", image.annotations, config["config"].get("Labels", {}))
        for part in (manifest["config"], *manifest["layers"]):
            length, digest = reader.hash(f"blobs/{part['digest']}")
            _same(f"{part['digest']}: bytes", part["digest"], digest)
            _same(f"{part['digest']}: size", part["size"], length)
            count += length
        kind = f"{entry['platform']['os']}/{entry['platform']['architecture']}" if platform_entry else "attestation"
        log.say(f"{kind} {entry['digest']}: {len(manifest['layers'])} layers, every byte hashed")
    return count


class _Reader:
    """Anonymous reading of one repository."""

    def __init__(self, name: ImageName, client: httpx.Client) -> None:
        host = "registry-1.docker.io" if name.registry == "docker.io" else name.registry
        self._name = name
        self._base = f"{'http' if name.is_loopback else 'https'}://{host}/v2/{name.repository}"
        self._client = client
        self._token = ""

    def fetch(self, path: str, accept: str) -> bytes:
        """The raw bytes of a manifest or a small blob."""
        with self._open(path, accept) as answer:
            return answer.read()

    def hash(self, path: str) -> tuple[int, str]:
        """Length and digest of a blob, streamed."""
        state, count = hashlib.sha256(), 0
        with self._open(path, "*/*") as answer:
            for chunk in answer.iter_raw():
                state.update(chunk)
                count += len(chunk)
        return count, f"sha256:{state.hexdigest()}"

    @contextmanager
    def _open(self, path: str, accept: str) -> Iterator[httpx.Response]:
        url = f"{self._base}/{path}"
        for _ in range(2):
            headers = {"Accept": accept, "Accept-Encoding": "identity"}
            if self._token:
                headers["Authorization"] = f"Bearer {self._token}"
            try:
                answer = self._client.send(self._client.build_request("GET", url, headers=headers), stream=True)
            except httpx.HTTPError as error:
                raise VerificationFailed(
                    f"{self._name.registry} cannot be read", found=str(error) or type(error).__name__, where=shown(url)
                ) from None
            if answer.status_code == 200:
                try:
                    yield answer
                finally:
                    answer.close()
                return
            challenge = answer.headers.get("WWW-Authenticate", "")
            answer.close()
            if answer.status_code != 401 or not self._ask_token(challenge):
                break
        raise VerificationFailed(
            f"{self._name} does not give {path.split('/')[0]} to a reader without credentials",
            expected="status 200",
            found=f"status {answer.status_code}",
            where=shown(url),
            next_step="is it published, and is the repository public?",
        )

    def _ask_token(self, challenge: str) -> bool:
        """Ask the token server of the challenge for what anyone may do; False without such a server."""
        words = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        if not challenge.lower().startswith("bearer") or "realm" not in words:
            return False
        scope = f"repository:{self._name.repository}:pull"
        try:
            answer = self._client.get(words["realm"], params={"service": words.get("service", ""), "scope": scope})
        except httpx.HTTPError:
            return False
        if answer.status_code != 200:
            return False
        said = answer.json()
        self._token = said.get("token") or said.get("access_token") or ""
        return bool(self._token)


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _same(what: str, expected: object, found: object) -> None:
    if expected != found:
        raise VerificationFailed(
            f"{what} is not what was released",
            expected=str(expected),
            found=str(found),
            next_step="do not announce this release; publish again, and find out who changed the registry",
        )


def _said(where: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Every annotation that was asked for is there, letter for letter."""
    for key, value in expected.items():
        _same(f"{key} on {where}", value, found.get(key))
