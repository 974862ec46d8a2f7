"""SBOMs of an image with real layers, read by the formats' own libraries."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from spdx_tools.spdx.model.relationship import RelationshipType
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from pipeline import sbom
from pipeline.core import sboms, zstd
from pipeline.core.errors import DigestMismatch, LockStale
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import Image, Variant
from pipeline.core.sboms import Form
from pipeline.inputs.lock import Lock
from pipeline.oci import layout
from pipeline.oci.layers import Layer
from pipeline.sbom import licences, rootfs
from tests.helpers.binaries import binary, go_binary, tarred
from tests.helpers.examples import LOCK, artifact
from tests.helpers.images import make
from tests.inspect.test_embedded import k3s

LOG = Log(quiet=True)
STATUS = """\
Package: libc6
Status: install ok installed
Architecture: {arch}
Source: glibc
Version: 2.41-12
Maintainer: GNU Libc Maintainers <debian-glibc@lists.debian.org>

Package: gone
Status: deinstall ok config-files
Architecture: {arch}
Version: 1.0

"""
ADDED = """\
Package: iptables
Status: install ok installed
Architecture: {arch}
Source: iptables-source (1.0)
Version: 1.0-1

Package: libgcc-s1
Status: install ok installed
Architecture: {arch}
Source: gcc-14
Version: 14.2.0-19

"""
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2001 Somebody
License: GPL-2+ or Artistic, and Expat

Files: debian/*
Copyright: 2002 Somebody
License: BSD-like-Own
 Do what you like.
 .
 Really.

License: Expat
 Permission is hereby granted.
"""


def layer(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """Return a layer with files and symlinks."""
    return gzip.compress(tarred(files, links), mtime=0)


def programs(platform: Platform) -> dict[str, bytes]:
    """Return the programs of a build below /usr/local, with versions in them."""
    modules = {"golang.org/x/net": "v0.30.0", "example.org/old": "v1.0.0 => example.org/new v1.1.0"}
    plugins = "usr/local/libexec/docker/cli-plugins"
    return {
        "usr/local/bin/dockerd": go_binary("v29.7.2", modules=modules, platform=platform),
        "usr/local/bin/docker": go_binary("(devel)", ldflags="-X version=29.7.2", platform=platform),
        "usr/local/bin/containerd": go_binary("v2.2.1", platform=platform),
        "usr/local/bin/containerd-shim-runc-v2": go_binary("v2.2.1", platform=platform),
        "usr/local/bin/ctr": go_binary("v2.2.1", platform=platform),
        "usr/local/bin/runc": go_binary("v1.4.0", platform=platform),
        "usr/local/bin/docker-init": binary("tini version 0.19.0\n", platform),
        "usr/local/bin/docker-proxy": binary("no version", platform),
        f"{plugins}/docker-buildx": go_binary("v0.36.1", platform=platform),
        f"{plugins}/docker-compose": go_binary("v5.4.0", platform=platform),
        "usr/local/bin/k3s": k3s(platform),
        "usr/local/bin/kubectl": go_binary("v1.37.1", modules=modules, platform=platform),
    }


def lock() -> Lock:
    """Return a lock of those programs."""
    paths = {"buildx": "docker-buildx", "compose": "docker-compose", "k3s": "k3s", "kubectl": "kubectl"}
    made = []
    for file in LOCK.artifacts:
        data = next(
            (data for path, data in programs(file.platform).items() if path.endswith(f"/{paths.get(file.component)}")),
            b"the archive",
        )
        made.append(artifact(file.component, file.platform, data))
    return replace(LOCK, artifacts=tuple(made))


def roots(platform: Platform, changed: Mapping[str, bytes] | None = None) -> list[bytes]:
    """Return the layers of one platform: base, packages, programs; the second hides a file of the first."""
    base = {
        "var/lib/dpkg/status": STATUS.format(arch=platform.architecture).encode(),
        "usr/lib/os-release": b'ID=debian\nVERSION_ID="13"\n',
        "usr/share/doc/libc6/copyright": b"This is the GNU C library, in prose.\n",
        "usr/share/doc/iptables/copyright": b"Format: x\n\nFiles: *\nCopyright: x\nLicense: GPL-3\n",
    }
    status = (STATUS + ADDED).format(arch=platform.architecture).encode()
    added = {
        "./var/lib/dpkg/status": status,
        "usr/share/doc/iptables/.wh.copyright": b"",
        "usr/share/doc/gcc-14-base/copyright": COPYRIGHT.encode(),
    }
    links = {"usr/share/doc/libgcc-s1": "gcc-14-base", "etc/os-release": "../usr/lib/os-release"}
    return [layer(base), layer(added, links), layer({**programs(platform), **(changed or {})})]


class Made:
    """An image and its SBOMs."""

    def __init__(self, dist: Path, changed: Mapping[str, bytes] | None = None) -> None:
        self.dist, self.lock = dist, lock()
        stated = {"org.opencontainers.image.created": "2026-11-22T00:00:00Z"}
        stated |= {"org.opencontainers.image.source": "https://example.org/dind-k3s"}
        stated |= {"org.opencontainers.image.licenses": "Apache-2.0", "org.opencontainers.image.title": "dind-k3s"}
        made = make(dist, "sbom", lock=self.lock, roots={platform: roots(platform, changed) for platform in Platform})
        self.image: Image = replace(made, annotations={**made.annotations, **stated})

    def run(self) -> None:
        sbom.run([self.image], self.lock, self.dist, LOG)

    def text(self, form: Form, platform: Platform = Platform.AMD64) -> str:
        return sboms.path(self.dist, platform, form).read_text(encoding="utf-8")

    def spdx(self, platform: Platform = Platform.AMD64) -> dict[str, dict[str, Any]]:
        """Return the packages by name; of the two runc, docker's."""
        document = json.loads(self.text(Form.SPDX, platform))
        return {package["name"]: package for package in reversed(document["packages"])}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = Made(tmp_path_factory.mktemp("sbom"))
    made.run()
    return made


@pytest.mark.parametrize("platform", Platform)
def test_documents_are_valid_for_the_libraries(made: Made, platform: Platform) -> None:
    document = parse_file(str(sboms.path(made.dist, platform, Form.SPDX)))
    assert [one.validation_message for one in validate_full_spdx_document(document)] == []
    text = made.text(Form.CYCLONEDX, platform)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = Bom.from_json(json.loads(text))  # type: ignore[attr-defined]
    assert bom.validate()
    assert len(bom.components) + 1 == len(document.packages)


def test_both_formats_have_the_same_packages(made: Made) -> None:
    spdx = {(one["name"], one.get("versionInfo")) for one in json.loads(made.text(Form.SPDX))["packages"]}
    document = json.loads(made.text(Form.CYCLONEDX))
    components = [*document["components"], document["metadata"]["component"]]
    assert {(one["name"], one.get("version")) for one in components} == spdx


@pytest.mark.parametrize(
    ("name", "version", "purl", "licence"),
    [
        ("docker", "29.7.2", "pkg:generic/docker/docker@29.7.2?download_url=", "Apache-2.0"),
        ("dockerd", "v29.7.2", "pkg:github/moby/moby@docker-v29.7.2", "Apache-2.0"),
        ("docker-cli", "29.7.2", "pkg:github/docker/cli@v29.7.2", "Apache-2.0"),
        ("containerd", "v2.2.1", "pkg:golang/github.com/containerd/containerd/v2@v2.2.1", "Apache-2.0"),
        ("runc", "v1.4.0", "pkg:golang/github.com/opencontainers/runc@v1.4.0", "Apache-2.0"),
        ("docker-init", "0.19.0", "pkg:github/krallin/tini@v0.19.0", "MIT"),
        ("docker-proxy", "29.7.2", "pkg:github/moby/moby@docker-v29.7.2", "Apache-2.0"),
        ("buildx", "0.36.1", "pkg:golang/github.com/docker/buildx@v0.36.1", "Apache-2.0"),
        ("compose", "5.4.0", "pkg:golang/github.com/docker/compose/v5@v5.4.0", "Apache-2.0"),
        ("k3s", "v1.37.1+k3s1", "pkg:golang/github.com/k3s-io/k3s@v1.37.1%2Bk3s1", "Apache-2.0"),
        ("kubectl", "v1.37.1", "pkg:golang/k8s.io/kubernetes@v1.37.1", "Apache-2.0"),
        ("golang.org/x/net", "v0.30.0", "pkg:golang/golang.org/x/net@v0.30.0", "NOASSERTION"),
        ("example.org/new", "v1.1.0", "pkg:golang/example.org/new@v1.1.0", "NOASSERTION"),
        ("stdlib", "1.25.1", "pkg:golang/stdlib@1.25.1", "BSD-3-Clause"),
        (
            "libc6",
            "2.41-12",
            "pkg:deb/debian/libc6@2.41-12?arch=amd64&distro=debian-13&upstream=glibc",
            "NOASSERTION",
        ),
        (
            "iptables",
            "1.0-1",
            "pkg:deb/debian/iptables@1.0-1?arch=amd64&distro=debian-13&upstream=iptables-source%401.0",
            "NOASSERTION",
        ),
    ],
)
def test_package(made: Made, name: str, version: str, purl: str, licence: str) -> None:
    package = made.spdx()[name]
    assert package["versionInfo"] == version
    (reference,) = package["externalRefs"]
    assert reference["referenceLocator"].startswith(purl)
    assert str(PackageURL.from_string(reference["referenceLocator"]).version).endswith(version.removeprefix("v"))
    assert package["licenseDeclared"] == licence


def test_programs_inside_k3s_and_its_modules(made: Made) -> None:
    document = json.loads(made.text(Form.CYCLONEDX))
    components = {one["bom-ref"]: one for one in document["components"]}
    assert components["component/k3s/runc"]["version"] == "1.4.2"
    assert {"name": "dind-k3s:path", "value": "/usr/local/bin/k3s!bin/runc"} in components["component/k3s/runc"][
        "properties"
    ]
    needs = {one["ref"]: one["dependsOn"] for one in document["dependencies"]}
    assert "go/github.com/k3s-io/cri-dockerd@v0.3.19-k3s5" in needs["component/k3s"]
    assert "component/k3s/runc" in needs["component/k3s"]


def test_replaced_modules_and_removed_packages_are_left_out(made: Made) -> None:
    assert {"example.org/old", "gone"} & made.spdx().keys() == set()


def test_locked_file_has_its_url_and_digest(made: Made) -> None:
    locked = {file.component: file for file in made.lock.files(Platform.AMD64)}
    for name in ("docker", "buildx", "compose", "k3s", "kubectl", "iptables"):
        package = made.spdx()[name]
        assert package["downloadLocation"] == locked[name].url
        assert package["checksums"] == [{"algorithm": "SHA256", "checksumValue": locked[name].digest.hex}]


def test_program_has_its_own_digest(made: Made) -> None:
    data = programs(Platform.AMD64)["usr/local/bin/runc"]
    package = made.spdx()["runc"]
    assert package["checksums"][0]["checksumValue"] == Digest.of(data).hex
    assert package["packageFileName"] == "/usr/local/bin/runc"


def test_machine_readable_licence_in_a_linked_folder(made: Made) -> None:
    declared = made.spdx()["libgcc-s1"]["licenseDeclared"]
    assert declared == "((GPL-2.0-or-later OR Artistic-1.0-Perl) AND MIT) AND LicenseRef-libgcc-s1-BSD-like-Own"
    (extracted,) = json.loads(made.text(Form.SPDX))["hasExtractedLicensingInfos"]
    assert extracted["licenseId"] == "LicenseRef-libgcc-s1-BSD-like-Own"
    assert "Do what you like." in extracted["extractedText"]


def test_relationships(made: Made) -> None:
    document = parse_file(str(sboms.path(made.dist, Platform.AMD64, Form.SPDX)))
    names = {package.spdx_id: package.name for package in document.packages}
    relations = {
        (names.get(one.spdx_element_id, "document"), one.relationship_type, names[str(one.related_spdx_element_id)])
        for one in document.relationships
    }
    assert {
        ("document", RelationshipType.DESCRIBES, "dind-k3s"),
        ("dind-k3s", RelationshipType.DESCENDANT_OF, "library/debian"),
        ("library/debian", RelationshipType.CONTAINS, "libc6"),
        ("dind-k3s", RelationshipType.CONTAINS, "iptables"),
        ("docker", RelationshipType.CONTAINS, "runc"),
        ("dockerd", RelationshipType.DEPENDS_ON, "golang.org/x/net"),
        ("kubectl", RelationshipType.DEPENDS_ON, "stdlib"),
    } <= relations
    assert ("dind-k3s", RelationshipType.CONTAINS, "libc6") not in relations


def test_documents_are_reproducible(made: Made, tmp_path: Path) -> None:
    again = Made(tmp_path)
    again.run()
    for platform in Platform:
        for form in Form:
            assert again.text(form, platform) == made.text(form, platform)
    assert json.loads(made.text(Form.SPDX))["creationInfo"]["created"] == "2026-11-22T00:00:00Z"
    assert made.text(Form.SPDX) != made.text(Form.SPDX, Platform.ARM64)


def test_namespace_is_unique_for_each_image(made: Made) -> None:
    first, second = (json.loads(made.text(Form.SPDX, platform))["documentNamespace"] for platform in Platform)
    assert first != second
    assert made.image.platforms[Platform.AMD64].digest.hex in first


def test_program_that_differs_from_the_locked_file_is_an_error(tmp_path: Path) -> None:
    other = Made(tmp_path, {"usr/local/bin/kubectl": binary("another")})
    with pytest.raises(DigestMismatch, match="kubectl in the image is not the file that the lock names") as failure:
        other.run()
    assert Digest.of(binary("another")).text in str(failure.value)


def test_image_of_another_lock_is_an_error(made: Made) -> None:
    with pytest.raises(LockStale, match="another lock"):
        sbom.run([made.image], replace(made.lock, date="2026-11-23"), made.dist, LOG)


def test_changed_layer_is_an_error(tmp_path: Path) -> None:
    other = Made(tmp_path)
    manifest = json.loads(
        (tmp_path / "image/blobs/sha256" / other.image.platforms[Platform.AMD64].digest.hex).read_bytes()
    )
    changed = tmp_path / "image/blobs/sha256" / Digest(manifest["layers"][1]["digest"]).hex
    changed.write_bytes(b"!" + changed.read_bytes()[1:])
    with pytest.raises(DigestMismatch, match="a file of the built image has changed"):
        other.run()


def test_text_that_is_a_hard_link(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        one = tarfile.TarInfo("usr/share/common/one")
        one.size = 4
        archive.addfile(one, io.BytesIO(b"text"))
        for name in ("usr/share/doc/one/copyright", "usr/share/doc/one/changelog"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.LNKTYPE, one.name
            archive.addfile(link)
    made = make(tmp_path, "linked", lock=lock(), roots={platform: [packed.getvalue()] for platform in Platform})
    built = layout.read(tmp_path / "image", made.digest)
    files = rootfs.read(built, made.platforms[Platform.AMD64].digest, {})
    assert dict(files.contents) == {"usr/share/doc/one/copyright": "text"}


def test_layer_shared_by_variants_is_read_once(tmp_path: Path) -> None:
    made = Made(tmp_path)
    built = layout.read(made.dist / "image", made.image.digest)
    known: dict[Digest, Layer[rootfs.FileContent]] = {}
    first = rootfs.read(built, made.image.platforms[Platform.AMD64].digest, known)
    assert len(known) == 3
    for part in built.blobs:
        if part.digest in known:
            part.path.unlink()
    assert rootfs.read(built, made.image.platforms[Platform.AMD64].digest, known) == first


@pytest.mark.parametrize("what", ["usr/local/bin/runc", "usr/local/bin/k3s"])
def test_missing_program_is_an_error(what: str, tmp_path: Path) -> None:
    folder, _, name = what.rpartition("/")
    other = Made(tmp_path)
    kept = {platform: [*roots(platform), layer({f"{folder}/.wh.{name}": b""})] for platform in Platform}
    other.image = make(tmp_path, "missing", lock=other.lock, roots=kept)
    with pytest.raises(DigestMismatch, match=f"{name} is missing from the image"):
        other.run()


def airgap(tmp_path: Path, archive: bytes) -> tuple[Image, Lock]:
    """Return the variant with that archive of system images, and the lock with the right one."""
    name = "k3s-airgap-images"
    files = []
    for platform in Platform:
        right = artifact(name, platform, ARCHIVE)
        files.append(replace(right, version="v1.37.1+k3s1", path=f"k3s/{name}-{platform.architecture}.tar.zst"))
    locked = replace(lock(), airgap=tuple(files))
    layers = {
        platform: [
            *roots(platform),
            layer({f"usr/share/dind-k3s/images/{name}-{platform.architecture}.tar.zst": archive}),
        ]
        for platform in Platform
    }
    made = make(Variant.AIRGAP.below(tmp_path), "airgap", lock=locked, roots=layers)
    return replace(made, variant=Variant.AIRGAP), locked


LISTED = [{"Config": "c", "RepoTags": ["rancher/mirrored-pause:3.6", "docker.io/rancher/mirrored-coredns:1.12"]}]
ARCHIVE = zstd.compress(tarred({"manifest.json": json.dumps(LISTED).encode()}))


def test_system_images_of_the_variant_airgap(tmp_path: Path) -> None:
    image, locked = airgap(tmp_path, ARCHIVE)
    sbom.run([image], locked, tmp_path, LOG)
    folder = Variant.AIRGAP.below(tmp_path)
    document = parse_file(str(sboms.path(folder, Platform.ARM64, Form.SPDX)))
    assert validate_full_spdx_document(document) == []
    packages = {package.name: package for package in document.packages}
    assert packages["k3s-airgap-images"].checksums[0].value == Digest.of(ARCHIVE).hex
    assert packages["rancher/mirrored-pause"].version == "3.6"
    locators = {package.name: [one.locator for one in package.external_references] for package in document.packages}
    assert locators["docker.io/rancher/mirrored-coredns"] == ["pkg:docker/rancher/mirrored-coredns@1.12"]
    text = sboms.path(folder, Platform.ARM64, Form.CYCLONEDX).read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_system_images_that_differ_from_the_locked_ones_are_an_error(tmp_path: Path) -> None:
    image, locked = airgap(tmp_path, b"others")
    with pytest.raises(DigestMismatch, match="k3s-airgap-images in the image is not the file that the lock names"):
        sbom.run([image], locked, tmp_path, LOG)


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("GPL-2+", "GPL-2.0-or-later"),
        ("GPL-2.0+", "GPL-2.0-or-later"),
        ("GPL-2", "GPL-2.0-only"),
        ("LGPL-2.1+", "LGPL-2.1-or-later"),
        ("LGPL-3", "LGPL-3.0-only"),
        ("GFDL-NIV-1.3+", "GFDL-1.3-no-invariants-or-later"),
        ("Expat", "MIT"),
        ("GPL", None),
        ("GPL-2.1", None),
        ("public-domain", None),
        ("GPL-2+ with OpenSSL exception", None),
    ],
)
def test_spdx_id_of_debians_licence_names(name: str, identifier: str | None) -> None:
    assert licences.spdx_id(name) == identifier


@pytest.mark.parametrize("text", ["", "free for all", "Format: x\n", "Format: x\n\nFiles: *\nLicense:\n", "Format\n\0"])
def test_copyright_file_without_a_licence(text: str) -> None:
    assert licences.read("x", text) is None
