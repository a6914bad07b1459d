"""The list of regions is the same as Google's."""

import pytest

from cloud.regions import REGIONS, region_fault


def test_regions_match_googles_documents() -> None:
    import json
    from importlib import resources

    documents = resources.files("googleapiclient.discovery_cache") / "documents"
    found = {
        place["location"]
        for name in ("dataflow.v1b3", "aiplatform.v1")
        for place in json.loads((documents / f"{name}.json").read_text())["endpoints"]
        if "-" in place["location"]
    }
    assert found == set(REGIONS)
    assert not any(map(region_fault, REGIONS))


@pytest.mark.parametrize(
    ("region", "hint"),
    [
        ("us-centrall1", "did you mean 'us-central1'"),
        ("US-central1", "did you mean 'us-central1'"),
        ("us", ""),
    ],
)
def test_an_unknown_region_is_reported_with_a_similar_one(region: str, hint: str) -> None:
    fault = region_fault(region)
    assert f"{region!r}: expected a region such as us-central1" in fault
    assert hint in fault
