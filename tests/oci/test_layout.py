"""Reading an OCI layout: complete, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import DigestMismatch
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import Image
from pipeline.oci import layout
from tests.helpers.examples import digest
from tests.helpers.images import make


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return make(tmp_path, "layout")


def _file(tmp_path: Path, of: Digest) -> Path:
    return tmp_path / "image" / "blobs" / "sha256" / of.hex


def test_everything_is_listed_once(image: Image, tmp_path: Path) -> None:
    parts = layout.read(tmp_path / "image", image.digest)
    assert parts.index.digest == image.digest
    assert [part.digest for part in parts.manifests[:2]] == [built.digest for built in image.platforms.values()]
    assert len(parts.manifests) == 4
    on_disk = {path.name for path in (tmp_path / "image/blobs/sha256").iterdir()}
    assert sorted(part.digest.hex for part in parts) == sorted(on_disk)
    assert parts.verify() == sum(path.stat().st_size for path in (tmp_path / "image/blobs/sha256").iterdir())


def test_a_changed_blob_is_found(image: Image, tmp_path: Path) -> None:
    part = layout.read(tmp_path / "image", image.digest).blobs[-1]
    part.path.write_bytes(part.path.read_bytes()[:-1] + b"!")
    with pytest.raises(DigestMismatch) as failure:
        layout.read(tmp_path / "image", image.digest).verify()
    assert part.digest.text in str(failure.value)
    assert "nox -s build" in str(failure.value)


def test_a_shortened_blob_is_found_without_hashing(image: Image, tmp_path: Path) -> None:
    part = layout.read(tmp_path / "image", image.digest).blobs[0]
    part.path.write_bytes(part.path.read_bytes()[:-1])
    with pytest.raises(DigestMismatch, match="another size"):
        layout.read(tmp_path / "image", image.digest)


def test_a_missing_manifest_is_found(image: Image, tmp_path: Path) -> None:
    _file(tmp_path, image.platforms[Platform.ARM64].digest).unlink()
    with pytest.raises(DigestMismatch, match="not complete"):
        layout.read(tmp_path / "image", image.digest)


def test_a_changed_manifest_is_found(image: Image, tmp_path: Path) -> None:
    path = _file(tmp_path, image.platforms[Platform.ARM64].digest)
    path.write_bytes(path.read_bytes().replace(b'"schemaVersion": 2', b'"schemaVersion": 3'))
    with pytest.raises(DigestMismatch, match="has changed"):
        layout.read(tmp_path / "image", image.digest)


def test_another_index_is_not_there(image: Image, tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch, match="not there"):
        layout.read(tmp_path / "image", digest("another"))
