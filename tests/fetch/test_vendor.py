"""A vendored folder: its content, and a checkout that uses it instead of all upstreams."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline import __main__ as cli
from pipeline.build import context
from pipeline.core.cache import path_of
from pipeline.core.errors import LockStale, RegistryError, UpstreamError
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.fetch import base, vendor
from pipeline.fetch.vendor import Vendored
from pipeline.inputs import lock, versions
from tests.helpers.sites import Site

LOG = Log(quiet=True)
BASE_FILES = 1 + 3 * len(Platform)  # index; per platform a manifest, a config, a layer


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with closing(Site(tmp_path / "site")) as site:
        yield site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "mirror"


def vendored(site: Site, folder: Path, url: str | None = None) -> Vendored:
    return vendor.run(versions.read(site.intent_path), site.lock, folder, site.cache, LOG, url=url)


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    """Python's static file server, as in the folder's README."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # Serving HTTP on 127.0.0.1 port 40001 …
            yield f"http://127.0.0.1:{line.split(' port ')[1].split()[0]}"
        finally:
            process.kill()


def test_every_file_is_at_its_vendors_path_and_linked_into_the_cache(site: Site, folder: Path) -> None:
    done = vendored(site, folder)
    assert (done.added, done.kept) == (len(site.lock.all_files) + BASE_FILES, 0)
    k3s = folder / "github/k3s-io/k3s/releases/download/v1.37.1+k3s1/k3s-arm64"
    assert k3s.read_bytes() == b"k3s for linux/arm64"
    assert k3s.samefile(path_of(site.cache, Digest.of_file(k3s)))
    assert (folder / "docker/linux/static/stable/x86_64/docker-29.7.2.tgz").is_file()
    assert (folder / "kubernetes/release/v1.37.1/bin/linux/amd64/kubectl").is_file()
    assert (folder / "debian/pool/main/i/iptables/iptables_1.8.11-2+b1_arm64.deb").is_file()
    assert len((folder / "README").read_text(encoding="utf-8").splitlines()) == 3


def test_the_base_image_is_an_oci_layout(site: Site, folder: Path) -> None:
    vendored(site, folder)
    top = yaml.safe_load((folder / "base/index.json").read_text(encoding="utf-8"))
    assert top["manifests"][0]["digest"] == site.base.text
    assert (folder / "base/oci-layout").is_file()
    for path in (folder / "base/blobs/sha256").iterdir():
        assert Digest.of_file(path).hex == path.name


def test_the_second_run_adds_only_what_is_missing_or_wrong(site: Site, folder: Path) -> None:
    vendored(site, folder)
    kept = len(site.lock.all_files) + BASE_FILES
    assert vendored(site, folder) == Vendored(added=0, bytes=0, kept=kept)
    gone = folder / "docker/linux/static/stable/x86_64/docker-29.7.2.tgz"
    gone.unlink()
    wrong = folder / "kubernetes/release/v1.37.1/bin/linux/amd64/kubectl"
    wrong.unlink()
    wrong.write_bytes(b"tampered with")
    blob = next(path for path in (folder / "base/blobs/sha256").iterdir() if path.name != site.base.hex)
    blob.unlink()
    again = vendored(site, folder)
    assert (again.added, again.kept) == (3, kept - 3)
    assert wrong.read_bytes() == b"kubectl for linux/amd64"


def test_files_are_copied_where_they_cannot_be_linked(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    vendored(site, folder)
    assert all(path.stat().st_nlink == 1 for path in folder.rglob("*") if path.is_file())
    monkeypatch.undo()
    assert vendored(site, folder).added == 0


@pytest.mark.parametrize("way", ["http", "file"])
def test_a_checkout_without_upstreams_uses_the_folder(site: Site, folder: Path, tmp_path: Path, way: str) -> None:
    """With an empty cache and without upstreams and registry, all files are from the folder."""
    expected = site.everything
    vendored(site, folder)
    with http_server(folder) as url:
        if way == "http":
            vendored(site, folder, url)
        with site.intent_path.open("a", encoding="utf-8") as stream:
            text = site.intent_path.read_text(encoding="utf-8")
            assert "mirrors: {}\n" in text
            site.intent_path.write_text(text.replace("mirrors: {}\n", ""), encoding="utf-8")
            stream.seek(0, os.SEEK_END)
            stream.write((folder / vendor.FRAGMENT).read_text(encoding="utf-8"))
        run = site.run(tmp_path / "cache")
        run.fetch(offline=False)
    assert {Digest.of_file(path): path.read_bytes() for path in (run.cache / "sha256").iterdir()} == expected
    run.fetch(offline=True)
    context.prepare(run.intent, run.lock, run.cache, tmp_path / "context", LOG)
    assert (tmp_path / "context/artifacts/arm64/k3s").read_bytes() == b"k3s for linux/arm64"


def test_a_mirror_of_the_base_image_with_other_bytes_is_skipped(
    site: Site, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vendored(site, folder)
    for path in (folder / "base/blobs/sha256").iterdir():
        path.unlink()
        path.write_bytes(b"tampered with")
    origins = ("docker", "github", "kubernetes", "debian", "base")
    site.write_intent({origin: (f"file://localhost{folder}/{origin}",) for origin in origins})
    run = site.run(tmp_path / "cache")
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1"):  # the registry is next, which is down
        run.fetch(offline=False)
    assert f"no mirror has {site.base.short}" in capsys.readouterr().err
    assert not path_of(run.cache, site.base).exists()


def test_the_fragment_is_valid_in_versions_yaml(site: Site, folder: Path) -> None:
    vendored(site, folder, "https://mirror.example/dind-k3s/")
    read = yaml.safe_load((folder / vendor.FRAGMENT).read_text(encoding="utf-8"))["mirrors"]
    assert read["docker"] == ["https://mirror.example/dind-k3s/docker"]
    assert list(read) == ["docker", "github", "kubernetes", "debian", "base"]
    intent = versions.read(site.intent_path)
    mirrored = replace(intent, mirrors={key: tuple(urls) for key, urls in read.items()})
    assert versions.parse(versions.render(mirrored), "x") == mirrored
    assert mirrored.checksum == intent.checksum


def test_a_path_outside_of_the_folder_is_refused(site: Site, folder: Path) -> None:
    bad = replace(site.lock, packages=(replace(site.lock.packages[0], path="pool/%2e%2e/%2e%2e/%2e%2e/etc/passwd"),))
    with pytest.raises(LockStale, match="outside of its origin"):
        vendor.run(versions.read(site.intent_path), bad, folder, site.cache, LOG, url=None)


def test_the_command_fetches_and_vendors(site: Site, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*site.arguments, "vendor", str(folder), "--url", "http://127.0.0.1:1"]) == 0
    assert f"{len(site.lock.all_files) + BASE_FILES} files added" in capsys.readouterr().err
    file = folder.parent / "a file"
    file.write_text("")
    assert cli.main([*site.arguments, "vendor", str(file)]) == 2
    assert "is a file" in capsys.readouterr().err


def test_an_incomplete_base_image_is_reported_offline(site: Site) -> None:
    run = site.run()
    run.fetch(offline=True)
    layer = path_of(site.cache, Digest.of(b"layer for linux/arm64"))
    layer.unlink()
    with pytest.raises(UpstreamError, match="of the base image is not in the cache"):
        run.fetch(offline=True)
    with pytest.raises(UpstreamError, match="nox -s fetch"):
        base.digests(site.base, list(Platform), site.cache)


def test_the_lock_of_the_example_is_read_back(site: Site) -> None:
    text = (site.folder / "versions.lock.yaml").read_text(encoding="utf-8")
    assert lock.render(lock.parse(text, "x")) == text
