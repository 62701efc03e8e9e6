"""Each named point at which a test may kill a process is armed by a test, and the residual's suite leaves none out."""

import re
from pathlib import Path

from tests.chaos import test_residual as residual

ROOT = Path(__file__).parents[3]
ROOMS = ("broker_config", "coordinator", "fedmq", "participant", "schemas", "studies")
POINT = re.compile(r'\bfault\("([a-z-]+)"')
BESIDE_THE_RESIDUAL = {
    "before-model-published", "model-published",  # before there is a task
    "chunks-on-disk", "before-model-kept", "model-kept",  # before there is a training
    "trainer-built", "trainer-done",  # of the process that trains, which has no residual
    "distil-asked", "distil-answered", "distilled-kept",  # of versions that are distilled from plain updates
    "before-farewell",  # after the last receipt
}  # fmt: skip


def points(folder: str) -> set[str]:
    files = (path for path in (ROOT / folder).rglob("*.py") if not path.is_symlink())
    return {name for path in files for name in POINT.findall(path.read_text())}


def test_every_point_is_armed_by_a_test():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
    named = set(re.findall(r'["\']([a-z-]+)(?::\d+)?(?::stop)?["\']', tests))
    everywhere = {name for room in ROOMS for name in points(room)}
    assert len(everywhere) > 40
    assert everywhere - named == set()


def test_the_residuals_suite_kills_at_every_point_between_a_training_and_its_receipt():
    both_sides = points("participant") | points("coordinator")
    in_chunks = {point for side in residual.ONLY_IN_CHUNKS for point in side}
    killed = {*residual.PARTICIPANT, *residual.COORDINATOR, *residual.AT_A_DISCARD, *in_chunks} - {"mid-training"}
    assert both_sides - BESIDE_THE_RESIDUAL == killed
