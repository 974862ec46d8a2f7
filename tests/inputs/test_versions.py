from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline import components
from pipeline.core.errors import IntentError
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant
from pipeline.inputs import versions
from pipeline.inputs.evidence import Grade
from tests.helpers.examples import INTENT

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "versions.yaml").read_text(encoding="utf-8")
SCHEMA_PATH = ROOT / "versions.schema.json"
SCHEMA = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))


def test_the_committed_file_is_read_and_fits_the_schema() -> None:
    intent = versions.parse(TEXT, "versions.yaml")
    assert set(intent.components) == set(components.COMPONENTS)
    jsonschema.validate(yaml.load(TEXT, Loader=yaml.BaseLoader), SCHEMA)


def made_of_records() -> dict[str, Any]:
    """Return the schema with the parts that records, origins, platforms, variants and grades decide."""
    schema: dict[str, Any] = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    properties, records = schema["properties"], components.COMPONENTS

    def each(names: Iterable[str], kind: str) -> dict[str, Any]:
        return {name: {"$ref": f"#/$defs/{kind}"} for name in names}

    properties["components"]["required"] = list(records)
    properties["components"]["properties"] = {
        name: {
            "type": ["string", "number"],
            "title": "an exact version or a channel (docs/versions.md)",
            "pattern": f"^({one.asked})$",
        }
        for name, one in records.items()
    }
    properties["known-fixes"]["items"]["properties"]["component"]["enum"] = list(records)
    properties["cooldown"]["then"]["properties"] = each(["default", *records], "days")
    properties["policy"]["properties"] = each(["default", *records, "base", "packages"], "grade")
    properties["upstream"]["properties"] = each(versions.ORIGINS, "url")
    properties["mirrors"]["properties"] = each([*versions.ORIGINS, "base"], "mirrors")
    properties["platforms"]["items"]["enum"] = list(Platform)
    properties["variants"]["items"]["enum"] = [one for one in Variant if one is not Variant.IMAGE]
    schema["$defs"]["grade"]["enum"] = list(Grade)
    return schema


def test_the_schema_is_made_of_the_records(request: pytest.FixtureRequest) -> None:
    """`pytest --update-golden` writes it again; editors read the file, and so does versions.read."""
    made = json.dumps(made_of_records(), indent=2, ensure_ascii=False) + "\n"
    if request.config.getoption("--update-golden"):
        SCHEMA_PATH.write_text(made, encoding="utf-8")
    assert SCHEMA_PATH.read_text(encoding="utf-8") == made
    assert set(SCHEMA["properties"]["witnesses"]["properties"]) == {"docker"}


def test_rendering_and_parsing_an_intent_are_inverse() -> None:
    intent = replace(
        INTENT,
        upstream={**versions.UPSTREAM, "docker": "http://127.0.0.1:8080/docker"},
        cooldown={"default": 3, "k3s": 0},
        known_fixes=(versions.KnownFix(component="k3s", version="v1.37.1+k3s1", reason="a: #1"),),
        policy={"default": Grade.PUBLISHED, "docker": Grade.FIRST_USE},
        witnesses={"docker": ("https://m.example/docker-ce",)},
        variants=(Variant.AIRGAP,),
    )
    assert versions.parse(versions.render(intent), "x") == intent
    jsonschema.validate(yaml.load(versions.render(intent), Loader=yaml.BaseLoader), SCHEMA)


def test_a_cooldown_for_all_and_for_one() -> None:
    assert versions.parse(TEXT, "v").days("k3s") == 3
    intent = versions.parse(TEXT.replace("cooldown: 3", "cooldown: {default: 5, k3s: 0}"), "v")
    assert (intent.days("k3s"), intent.days("docker")) == (0, 5)
    assert versions.parse(TEXT.replace("cooldown: 3\n", ""), "v").days("docker") == 0


def test_a_variant_needs_no_new_lock() -> None:
    asked = versions.parse(TEXT, "v")
    assert asked.variants == (Variant.AIRGAP,)
    without = versions.parse(TEXT.replace("variants: [airgap]\n", ""), "v")
    assert without.variants == ()
    assert without.checksum == asked.checksum
    with pytest.raises(IntentError, match="variants: expected airgap, the only one there is, found 'image'"):
        versions.parse(TEXT.replace("[airgap]", "[image]"), "v")


def test_too_many_levels_are_an_error_message() -> None:
    with pytest.raises(IntentError, match="too many levels"):
        versions.parse("[" * 20_000, "v")


@pytest.mark.parametrize(
    ("before", "after", "line", "sentence"),
    [
        ("docker: 29.7.2", "dcoker: 29.7.2", "dcoker", "did you mean 'docker'?"),
        ("docker: 29.7.2", "docker: 29.7.2\n  docker: 29.7.1", "29.7.1", "is here twice"),
        ("linux/arm64]", "linux/arm6]", "linux/arm6]", "expected one of linux/amd64, linux/arm64"),
        ("k3s: v1.37.1+k3s1", "k3s: newest", "k3s: newest", "an exact version or a channel"),
        ("debian:trixie-slim", "debian", "base: docker.io", "expected a name with a tag"),
        ("schema: 1", "schema: 2", "schema: 2", "the only format there is"),
        ("  source: https://", "  source: https://user:pass@", "source: https", "credentials"),
        ("    - zstd", "    - ZSTD!", "ZSTD!", "the name of a Debian package"),
        ("  source: https://", "  source: https://x.org/?token=abc#", "source: https", "without credentials and query"),
        ("cooldown: 3", "cooldown: soon", "cooldown: soon", "days, 0 to 999"),
        ("cooldown: 3", "cooldown: -3", "cooldown: -3", "days, 0 to 999"),
        ("cooldown: 3", "cooldown: {dokcer: 3}", "dokcer", "did you mean 'docker'?"),
        ("  docker: corroborated", "  docker: trusted", "docker: trusted", "signed, published, corroborated, recorded"),
        ("  docker: corroborated", "  dokcer: corroborated", "dokcer: corr", "did you mean 'docker'?"),
        ("cooldown: 3", "known-fixes: [{component: runc, version: 1.0.0, reason: x}]", "runc", "a component"),
        (
            "cooldown: 3",
            "known-fixes: [{component: k3s, version: stable, reason: x}]",
            "version: stable",
            "an exact version",
        ),
        ("cooldown: 3", "known-fixes: [{component: k3s, version: v1.37.1+k3s1}]", "known-", "'reason' is missing"),
        ("cooldown: 3", "known-fixes: [{component: k3s, version: [1], reason: x}]", "[1]", "an exact version"),
        ("cooldown: 3", "known-fixes: k3s", "known-fixes", "a list of component, version and reason"),
        ("docker: 29.7.2", "docker: ٣", "docker: ٣", "an exact version or a channel"),
        ("cooldown: 3", "mirrors: {docker: ['https://[']}", "https://[", "an http or https URL"),
        ("cooldown: 3", "mirrors: {docker: ['https://h:99999']}", "99999", "an http or https URL"),
    ],
)
def test_an_error_is_reported_with_its_line(before: str, after: str, line: str, sentence: str) -> None:
    text = TEXT.replace(before, after)
    number = next(index for index, one in enumerate(text.splitlines(), 1) if line in one)
    with pytest.raises(IntentError) as refused:
        versions.parse(text, "versions.yaml")
    assert f"versions.yaml:{number}: " in str(refused.value)
    assert sentence in str(refused.value)


def test_all_errors_are_reported_at_once() -> None:
    text = TEXT.replace("docker: 29.7.2", "dokcer: 29.7.2").replace("schema: 1", "schema: 3")
    with pytest.raises(IntentError) as refused:
        versions.parse(text, "v")
    assert str(refused.value).count("v:") == 3  # the unknown key, the missing one, the format


def test_a_version_is_never_read_as_a_number() -> None:
    assert versions.parse(TEXT.replace("docker: 29.7.2", "docker: 29.10.0"), "v").components["docker"] == "29.10.0"
    assert versions.parse(TEXT.replace("docker: 29.7.2", "docker: 30"), "v").components["docker"] == "30"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "v: empty"),
        ("- a\n- b\n", "v:1: versions.yaml: expected keys and values, found a list or keys and values"),
        ("image: [", "v:1: not YAML"),
        ("schema: 1\n", "v:1: versions.yaml: 'base' is missing"),
    ],
)
def test_an_invalid_intent_is_refused_with_an_error_message(text: str, sentence: str) -> None:
    with pytest.raises(IntentError) as refused:
        versions.parse(text, "v")
    assert sentence in str(refused.value)


def test_the_checksum_covers_what_decides_a_lock_and_nothing_else() -> None:
    assert replace(INTENT, policy={"default": Grade.SIGNED}).checksum == INTENT.checksum
    assert replace(INTENT, cooldown={"default": 3}).checksum != INTENT.checksum
    assert replace(INTENT, title="other", mirrors={"docker": ("https://m",)}).checksum == INTENT.checksum
    assert replace(INTENT, witnesses={"docker": ("https://m",)}).checksum == INTENT.checksum
    assert replace(INTENT, base="docker.io/library/debian:sid").checksum != INTENT.checksum
    assert replace(INTENT, packages=("iptables", "git")).checksum != INTENT.checksum


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("witnesses: {k3s: [https://m]}", "unknown key 'k3s'"),
        ("witnesses: {docker: ['file:///srv']}", "an http or https URL"),
        ("witnesses: {docker: ['https://u:p@m']}", "without credentials"),
        ("witnesses: {docker: []}", "at least one entry"),
    ],
)
def test_a_witness_is_a_site_of_docker(text: str, message: str) -> None:
    start, _, rest = TEXT.partition("witnesses:\n")
    with pytest.raises(IntentError, match=message):
        versions.parse(f"{start}{text}\n{rest.partition(chr(10))[2]}", "x")


def test_a_mirror_can_be_a_folder_and_an_upstream_cannot() -> None:
    with_mirror = TEXT + "mirrors:\n  docker: [file:///srv/a%20b/docker]\n  base: [https://m.example/base]\n"
    jsonschema.validate(yaml.load(with_mirror, Loader=yaml.BaseLoader), SCHEMA)
    intent = versions.parse(with_mirror, "x")
    assert intent.mirrors == {"docker": ("file://localhost/srv/a%20b/docker",), "base": ("https://m.example/base",)}
    assert versions.parse(versions.render(intent), "x").mirrors == intent.mirrors
    for wrong, message in (("ftp://m", "an http or https URL"), ("file://host/srv", "file:///… with an absolute path")):
        with pytest.raises(IntentError, match=f"expected {message}"):
            versions.parse(f"{TEXT}mirrors:\n  docker: [{wrong}]\n", "x")
    with pytest.raises(IntentError, match="expected an http or https URL"):
        versions.parse(TEXT + "upstream:\n  docker: file:///srv\n", "x")
