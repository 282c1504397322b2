"""What is said of versions of transformers, held against the one that is installed."""

from __future__ import annotations

import pytest

from inferscope.capture import versions

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.capture
PLACES = {**versions.GENERATION, **versions.CONTINUOUS}


def number(version):
    return tuple(int(part) for part in version.split(".")[:2])


@pytest.mark.parametrize("key", PLACES)
def test_a_place_is_there_in_the_versions_that_are_said_to_have_it(key):
    pytest.importorskip("transformers.generation.continuous_batching")
    place, installed = PLACES[key], number(transformers.__version__)
    since = place.since is None or number(place.since) <= installed
    before = place.before is None or installed < number(place.before)
    assert (versions.found(place, load=True) is not None) is (since and before)


def test_all_of_continuous_batching_is_seen_in_the_same_versions():
    assert all(place.without for place in versions.CONTINUOUS.values())
