from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inputs import evidence
from pipeline.inputs.evidence import Evidence, Grade

reasons = st.lists(
    st.builds(
        Evidence,
        grade=st.sampled_from(Grade),
        source=st.sampled_from(["https://a.example.org/x", "https://b.example.net/x", "five projects record it", ""]),
        observed=st.none() | st.just("2026-01-01"),
    ),
    unique_by=lambda one: (one.grade, one.source),
)


def seen(grade: Grade, source: str, observed: str | None = None) -> Evidence:
    return Evidence(grade=grade, source=source, observed=observed)


def test_grades_are_ordered_as_they_are_listed() -> None:
    for stronger, weaker in itertools.pairwise(Grade):
        assert stronger.reaches(weaker)
        assert not weaker.reaches(stronger)
        assert stronger.reaches(stronger)


@pytest.mark.parametrize(
    ("sources", "grade"),
    [
        (["https://download.docker.com/x", "https://mirrors.aliyun.com/x"], Grade.CORROBORATED),
        (["https://download.docker.com/x", "https://cdn.docker.com/x"], Grade.FIRST_USE),
        (["https://download.docker.com/x"], Grade.FIRST_USE),
        (["https://127.0.0.1:1/x", "https://127.0.0.1:2/x"], Grade.FIRST_USE),
        (["https://127.0.0.1:1/x", "https://download.docker.com/x"], Grade.FIRST_USE),
        (["http://localhost/x", "https://download.docker.com/x"], Grade.FIRST_USE),
        (["file://localhost/srv/x", "https://download.docker.com/x"], Grade.FIRST_USE),
        (["file:///srv/x", "https://download.docker.com/x"], Grade.FIRST_USE),
        (["https://10.0.0.1/x", "https://10.9.0.1/x"], Grade.CORROBORATED),
        (["one project records it", "https://download.docker.com/x"], Grade.FIRST_USE),
        (["https://[/x", "https://download.docker.com/x"], Grade.FIRST_USE),
        ([], Grade.FIRST_USE),
    ],
)
def test_two_unrelated_sites_corroborate(sources: list[str], grade: Grade) -> None:
    assert evidence.grade([seen(Grade.FIRST_USE, source) for source in sources]) is grade


def test_the_strongest_reason_counts() -> None:
    both = [seen(Grade.FIRST_USE, "https://a.example.org/x"), seen(Grade.FIRST_USE, "https://b.example.net/x")]
    assert evidence.grade([*both, seen(Grade.PUBLISHED, "checksums")]) is Grade.PUBLISHED
    assert evidence.grade([*both, seen(Grade.SIGNED, "signature")]) is Grade.SIGNED


@given(reasons, reasons)
def test_merging_is_stable_forgets_nothing_and_never_weakens(known: list[Evidence], new: list[Evidence]) -> None:
    once = evidence.merge(known, new, "2026-11-25")
    assert evidence.merge(once, new, "2027-01-01") == once, "the same answers give the same bytes, on any later day"
    assert evidence.merge(reversed(known), reversed(new), "2026-11-25") == once, "in whatever order they came"
    assert {(one.grade, one.source) for one in once} == {(one.grade, one.source) for one in [*known, *new]}
    assert evidence.grade(once).reaches(evidence.grade(known))


def test_a_known_reason_keeps_its_day_and_a_new_one_gets_today() -> None:
    known = [seen(Grade.PUBLISHED, "checksums", "2026-01-01"), seen(Grade.RECORDED, "somebody")]
    merged = evidence.merge(known, [seen(Grade.PUBLISHED, "checksums"), seen(Grade.SIGNED, "s")], "2026-11-25")
    assert [(one.source, one.observed) for one in merged] == [
        ("s", "2026-11-25"),
        ("checksums", "2026-01-01"),
        ("somebody", None),  # its date is unknown, and it was not observed today
    ]


def test_a_policy_has_a_default_and_may_be_missing() -> None:
    policy = {"default": Grade.PUBLISHED, "docker": Grade.CORROBORATED}
    assert evidence.least(policy, "docker") is Grade.CORROBORATED
    assert evidence.least(policy, "k3s") is Grade.PUBLISHED
    assert evidence.least({}, "k3s") is Grade.FIRST_USE
