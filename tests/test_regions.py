"""The list of regions is Google's."""

import pytest

from cloud.regions import REGIONS, region_fault


def test_regions_are_those_of_googles_documents() -> None:
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
    ("region", "told"),
    [("us-centrall1", "nearest: us-central1"), ("US-central1", "nearest: us-central1"), ("us", "")],
)
def test_a_region_that_there_is_not_names_the_nearest(region: str, told: str) -> None:
    fault = region_fault(region)
    assert f"{region!r}: expected a region as us-central1" in fault
    assert told in fault
