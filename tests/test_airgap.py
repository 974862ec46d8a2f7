"""The variant airgap through the workflow: what a lock without its files means for each stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.errors import IntentError, LockStale
from pipeline.core.records import Variant
from pipeline.inputs import lock, versions
from pipeline.workflow import Run
from tests.helpers.examples import AIRGAP_LOCK
from tests.helpers.images import make, scanned, smoked
from tests.helpers.sites import Site


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A checkout whose versions.yaml asks for the variant, and whose lock is from before."""
    site = Site(tmp_path)
    made = site.run()
    asked = replace(versions.read(made.intent_path), variants=(Variant.AIRGAP,))
    versions.write(made.intent_path, asked)
    site.close()
    return made


def write_lock(run: Run) -> Run:
    """The lock, with the system images; returns a command that reads it."""
    lock.write(run.lock_path, replace(lock.read(run.lock_path, run.intent), airgap=AIRGAP_LOCK.airgap))
    return replace(run)


def test_without_its_files_the_image_alone_is_planned(run: Run) -> None:
    assert '"airgap"' not in run.plan()
    run = write_lock(run)
    assert '"target": "airgap"' in run.plan()


def test_without_its_files_nothing_is_pushed(run: Run) -> None:
    with pytest.raises(LockStale, match=r"versions\.yaml asks for airgap, and the lock lacks its files") as failure:
        run.push()
    assert failure.value.exit_code == 5
    assert "nox -s resolve" in str(failure.value)


def test_nothing_is_pushed_before_all_of_it_may_be(run: Run) -> None:
    """The image is smoked and its variant was never built: the image is not pushed either, nobody is asked."""
    run = write_lock(run)
    image = make(run.dist, "alone", lock=run.lock)
    image.write(run.dist)
    for report in smoked(image):
        report.write(run.dist)
    with pytest.raises(IntentError, match="nox -s build"):
        run.push()
    airgap = make(Variant.AIRGAP.below(run.dist), "alone", Variant.AIRGAP, lock=run.lock)
    airgap.write(Variant.AIRGAP.below(run.dist))
    with pytest.raises(IntentError, match="nox -s scan"):
        run.push()
    for one in scanned(image):
        one.write(run.dist)
    with pytest.raises(IntentError, match="nox -s smoke"):
        run.push()
    assert not (run.dist / "release.json").exists()


def test_only_who_asks_for_it_fetches_it(run: Run) -> None:
    assert not [file for file in run.lock.all_files if file in AIRGAP_LOCK.airgap]
    run = write_lock(run)
    assert [file for file in run.lock.all_files if file in AIRGAP_LOCK.airgap] == [*run.lock.airgap]
    versions.write(run.intent_path, replace(run.intent, variants=()))
    assert replace(run).lock.airgap == ()
