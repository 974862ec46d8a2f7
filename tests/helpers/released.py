"""A release of a tiny image that was built and smoked, to two real registries: both with tokens, one with TLS."""

from __future__ import annotations

import json
import ssl
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import httpx

from pipeline import steps
from pipeline.build import build
from pipeline.core.log import Log
from pipeline.core.names import Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import Release
from pipeline.http import transport
from pipeline.inputs import lock, versions
from pipeline.oci.registry import Registry
from pipeline.publish import verify
from pipeline.rehearsal.registry import Served, free_ports, serve
from pipeline.signing.bundle import Trust
from pipeline.workflow import Run
from tests.helpers.examples import INTENT
from tests.helpers.images import make, program, smoked
from tests.helpers.signed import new_key
from tests.publish.test_scan import SCANNER, grype
from tests.sbom import test_sbom

ROOT = Path(__file__).resolve().parents[2]
LOG = Log(quiet=True)
STEPS = ["build", "smoke", "sbom", "scan", "push", "sign", "tag", "verify"]


class Network(httpx.BaseTransport):
    """The way to the registries, with what went over it; `fault` may answer in their place, or raise."""

    def __init__(self, verify: ssl.SSLContext, fault: Callable[[int, httpx.Request], httpx.Response | None]) -> None:
        self._through = httpx.HTTPTransport(verify=verify)
        self._fault = fault
        self.requests: list[httpx.Request] = []
        self.asked = 0  # with those that did not arrive

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        number, self.asked = self.asked, self.asked + 1
        instead = self._fault(number, request)
        if instead is not None:
            return instead
        answer = self._through.handle_request(request)
        if answer.status_code != httpx.codes.UNAUTHORIZED:  # what comes without a token is asked for it, and not taken
            self.requests.append(request)
        return answer

    def close(self) -> None:
        self._through.close()


def no_fault(_number: int, _request: httpx.Request) -> None:
    """Everything arrives."""


class Registries:
    """Both registries, and what every test needs to reach them."""

    def __init__(self, plain: Served, secure: Served, folder: Path) -> None:
        self.served = {served.host: served for served in (plain, secure)}
        assert secure.authority is not None
        self.authority = secure.authority
        self.verify = ssl.create_default_context(cafile=str(secure.authority))
        self.docker_config = folder / "docker"  # as `docker login` leaves it
        self.docker_config.mkdir()
        logins = {
            host: {"auth": b64encode(f"{who.credentials.username}:{who.credentials.password}".encode()).decode()}
            for host, who in self.served.items()
        }
        (self.docker_config / "config.json").write_text(json.dumps({"auths": logins}))


@contextmanager
def serving(folder: Path) -> Iterator[Registries]:
    """Both registries."""
    with ExitStack() as stack:
        plain, secure = (
            stack.enter_context(serve(program(), folder / name, free_ports(), tls=name == "secure"))
            for name in ("plain", "secure")
        )
        yield Registries(plain, secure, folder)


class Scene:
    """A checkout whose image was built and smoked, and that releases to a separate repository in both registries."""

    def __init__(self, registries: Registries, folder: Path, repository: str, seed: str = "") -> None:
        folder.mkdir(exist_ok=True)
        self.registries, self.folder, self.dist = registries, folder, folder / "dist"
        self.names = tuple(ImageName(registry=host, repository=repository) for host in registries.served)
        self.requests: list[httpx.Request] = []  # that arrived, of all runs
        self.asked = 0  # by the last run
        self.key: Path | None = folder / "key"
        self.trust = Trust(key=new_key(folder / "key").public)
        self.scanner = folder / "scanner"
        self.scanner.write_text(f"#!{sys.executable}\n{SCANNER}")
        self.scanner.chmod(0o755)
        (folder / "report.json").write_text(grype())
        intent = replace(INTENT, names=self.names)
        versions.write(folder / "versions.yaml", intent)
        read = versions.read(folder / "versions.yaml")
        lock.write(folder / "versions.lock.yaml", replace(test_sbom.lock(), intent=read.checksum))
        run = self.run()
        marks = [test_sbom.layer({f"seed{number}": f"{repository} {seed} {number}".encode()}) for number in range(2)]
        roots = {platform: [*marks, *test_sbom.roots(platform)] for platform in Platform}
        made = make(self.dist, repository, lock=run.lock, roots=roots)
        self.image = replace(made, inputs=build.inputs_of(ROOT, run.plan()))
        self.image.write(self.dist)
        for report in smoked(self.image):
            report.write(self.dist)

    def run(self, client: httpx.Client | None = None) -> Run:
        return Run(
            root=ROOT,
            intent_path=self.folder / "versions.yaml",
            lock_path=self.folder / "versions.lock.yaml",
            dist=self.dist,
            cache=self.folder / "cache",
            log=LOG,
            client=client or httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(599))),
            credentials=lambda host: self.registries.served[host].credentials,
        )

    def release(
        self,
        fault: Callable[[int, httpx.Request], httpx.Response | None] = no_fault,
        smoke: Callable[[], object] | None = None,
        *,
        log: Log = LOG,
        dry_run: bool = False,
    ) -> None:
        """What `nox -s release` does, over a network with a fault."""

        def unexpected(*_: object) -> NoReturn:
            raise AssertionError("there is nothing to build or smoke")

        network = Network(self.registries.verify, fault)
        with transport.make_client(network) as client:
            made = steps.of(
                replace(self.run(client), start=unexpected),
                smoke=smoke or unexpected,
                scanner=[str(self.scanner)],
                least="high",
                key=self.key,
            )
            assert [step.name for step in made] == STEPS
            try:
                steps.go(made, log, dry_run=dry_run)
            finally:
                self.requests += network.requests
                self.asked = network.asked

    @property
    def record(self) -> Release:
        return Release.read(self.dist, self.image.digest)

    def tags(self, name: ImageName) -> dict[str, Digest]:
        """What an anonymous client sees, without the lists of signatures that are kept under tags."""
        with transport.make_client(verify=self.registries.verify) as client:
            anonymous = Registry(client, name)
            found = {tag: anonymous.manifest(tag) for tag in anonymous.tags() if not tag.startswith("sha256-")}
            return {tag: manifest.digest for tag, manifest in found.items() if manifest is not None}

    def require_sound(self) -> None:
        """Whatever has a tag is whole, signed and has its SBOMs; nothing was sent twice."""
        with transport.make_client(verify=self.registries.verify) as client:
            for name in self.names:
                for one in set(self.tags(name).values()):
                    verify.published([f"{name}@{one}"], self.trust, tuple(Platform), client, LOG, sleep=lambda _: None)
        sent = [
            (request.url.host, request.url.port, request.url.path.partition("/blobs/")[0], request.url.params["digest"])
            for request in self.requests
            if request.method == "PUT" and "digest" in request.url.params
        ] + [
            (request.url.host, request.url.port, request.url.path, "")
            for request in self.requests
            if request.method == "PUT" and "/manifests/sha256:" in request.url.path
        ]
        assert len(sent) == len(set(sent))

    def require_released(self) -> None:
        """Both registries have the image under all its tags, and so does the record."""
        self.require_sound()
        for name in self.names:
            assert set(self.tags(name).values()) == {self.image.digest}
            assert len(self.tags(name)) == 4
        record = self.record
        assert record.pushed == record.signed == tuple(map(str, self.names))
        assert len(record.tagged) == 8
        assert set(record.verified) == set(record.tagged)
        written = len(self.written)
        self.release()
        assert len(self.written) == written

    @property
    def written(self) -> list[httpx.Request]:
        return [request for request in self.requests if request.method not in ("GET", "HEAD")]
