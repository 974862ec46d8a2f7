"""k3s's registries.yaml for dockerd, and the YAML that it is written in."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from dind_k3s import authorities, configure, plain_yaml, registries
from dind_k3s.plan import Mistake
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    for folder in ("etc/rancher/k3s", "etc/ssl/certs", "certs.d", "etc/docker/certs.d", "root"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def written(root: Path, text: str) -> None:
    (root / "etc/rancher/k3s/registries.yaml").write_text(text)


def certificate(file: Path) -> None:
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=x",
    ]
    subprocess.run([*made, "-keyout", "/dev/null", "-out", str(file)], check=True, capture_output=True)


def test_certificates_of_another_ending_are_named(root: Path) -> None:
    for name in ("one.crt", "two.pem", "THREE.CRT", "notes.txt"):
        certificate(root / "certs.d" / name)
    warning, taken = authorities.plan().messages
    assert warning.startswith("warning: THREE.CRT, two.pem in /certs.d is not trusted: expected are files named *.crt")
    assert taken == "1 certificates of /certs.d are trusted: one.crt"


def test_what_dockerd_has_a_word_for(root: Path) -> None:
    certificate(root / "certs.d/one.crt")
    written(
        root,
        """
mirrors:
  docker.io:
    endpoint:
      - "https://mirror.example:5000/v2"   # k3s's spelling
      - http://plain.example
  "registry:5000":
    endpoint: ["http://registry:5000"]
configs:
  'private.example':
    auth: {"username": ""}
    tls:
      ca_file: /certs.d/one.crt
      insecure_skip_verify: true
  docker.io:
    auth:
      username: me
      password: geheim
""",
    )
    plan, settings = registries.plan()
    assert settings == {
        "registry-mirrors": ["https://mirror.example:5000", "http://plain.example"],
        "insecure-registries": ["registry:5000", "private.example"],
    }
    assert plan.links == {"/etc/docker/certs.d/private.example/ca.crt": "/certs.d/one.crt"}
    assert json.loads(plan.files["/root/.docker/config.json"]) == {
        "auths": {"https://index.docker.io/v1/": {"auth": "bWU6Z2VoZWlt"}}
    }
    assert not [line for line in plan.messages if "warning" in line or "geheim" in line or "bWU6" in line]


def test_what_it_has_none_for_is_a_line_each(root: Path) -> None:
    written(
        root,
        """
mirrors:
  "*":
    endpoint: ["https://all.example"]
  ghcr.io:
    endpoint: ["https://me:geheim@mirror.example"]
    rewrite:
      "^a": "b"
  docker.io:
    endpoint: ["https://harbor.example/v2/hub"]
configs:
  "*":
    tls:
      insecure_skip_verify: true
""",
    )
    plan, settings = registries.plan()
    assert settings == {}
    start = "warning: /etc/rancher/k3s/registries.yaml: "
    assert sorted(line.removeprefix(start) for line in plan.messages) == [
        "rewrite of ghcr.io is left out: dockerd has nothing for it",
        "the mirror harbor.example of docker.io is left out: dockerd has no mirrors with the path /v2/hub",
        "the mirror mirror.example of ghcr.io is left out: dockerd has mirrors of docker.io only",
        "what configs says for * is left out: dockerd wants each registry by name",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mirrors: [a]\n", "registries.yaml: mirrors has to be a mapping"),
        ("mirrors:\n  docker.io:\n    endpoint: https://x\n", "endpoint of docker.io has to be a list"),
        ("mirrors:\n\tdocker.io:\n", "line 2: YAML takes no tabs"),
        ("mirrors: &anchor\n", "line 1: only text, numbers"),
        ("mirrors:\n  a: 1\n  a: 2\n", "line 3: a stands there twice"),
        ("mirrors:\n    a: 1\n  b: 2\n", "line 3: this line's indentation"),
        (
            "configs:\n  x:\n    tls:\n      ca_file: /none.crt\n",
            "ca_file of x is /none.crt, and there is no such file",
        ),
        ("just words\n", "line 1: expected `key: value`"),
        ('{"mirrors": ', "begins like JSON and is none"),
    ],
)
def test_a_mistake_is_a_sentence_with_its_place(root: Path, text: str, sentence: str) -> None:
    written(root, text)
    with pytest.raises(Mistake, match=sentence.replace("`", ".")):
        registries.plan()


def test_logins_join_those_of_the_user(root: Path) -> None:
    (root / "root/.docker").mkdir()
    (root / "root/.docker/config.json").write_text('{"auths": {"mine": {"auth": "x"}}, "detachKeys": "ctrl-e"}')
    written(root, "configs:\n  y:\n    auth:\n      identity_token: z\n")
    plan, _ = registries.plan()
    assert json.loads(plan.files["/root/.docker/config.json"]) == {
        "auths": {"mine": {"auth": "x"}, "y": {"identitytoken": "z"}},
        "detachKeys": "ctrl-e",
    }


def test_a_link_never_takes_the_place_of_a_file(root: Path) -> None:
    mine = root / "etc/docker/certs.d/x/ca.crt"
    mine.parent.mkdir()
    mine.write_text("mine")
    configure.link({"/etc/docker/certs.d/x/ca.crt": "/a", "/etc/docker/certs.d/y/ca.crt": "/a"})
    configure.link({"/etc/docker/certs.d/y/ca.crt": "/b"})
    assert mine.read_text() == "mine"
    assert (root / "etc/docker/certs.d/y/ca.crt").readlink() == root / "b"


words = st.text(
    st.characters(codec="ascii", exclude_categories=["C"], exclude_characters="'\""), min_size=1, max_size=12
)
documents = st.recursive(
    st.one_of(words, st.lists(words, max_size=3)), lambda inner: st.dictionaries(words, inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(words, documents, max_size=4))
def test_what_pyyaml_writes_is_read_the_same(document: dict[str, object]) -> None:
    text = yaml.safe_dump(document, default_flow_style=False, width=1000)
    assert plain_yaml.parse(text, "x") == (document or {})


@given(st.text(st.sampled_from("ab:-'\"[]{}#,*&! \n\t"), max_size=40))
def test_other_text_is_refused_or_read_as_pyyaml_reads_it(text: str) -> None:
    try:
        value = plain_yaml.parse(text, "x")
        loaded = yaml.load(text, yaml.BaseLoader)
    except (Mistake, yaml.YAMLError):
        return

    def plain(of: object) -> object:
        if isinstance(of, dict):
            return {str(key or ""): plain(one) for key, one in of.items()}
        return [plain(one) for one in of] if isinstance(of, list) else of or ""

    assert plain(value) == plain(loaded)


def test_the_bundle_has_each_authority_once_however_often_it_starts(root: Path) -> None:
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.write_text("-----THE IMAGE'S-----\n")
    certificate(root / "certs.d/corporate.crt")
    for _ in range(3):
        configure.write(authorities.plan().files)
    assert bundle.read_text().count("BEGIN CERTIFICATE") == 1
    assert authorities.plan().files == {}
    (root / "certs.d/corporate.crt").unlink()
    configure.write(authorities.plan().files)
    assert bundle.read_text() == "-----THE IMAGE'S-----\n"


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_broken_authority_is_named(root: Path, content: bytes) -> None:
    (root / "certs.d/bad.crt").write_bytes(content)
    with pytest.raises(Mistake, match=r"/certs\.d/bad\.crt holds no certificate in PEM"):
        authorities.plan()
