"""The regions of Google Cloud that can hold jobs and endpoints."""

from __future__ import annotations

from common.errors import suggest

# Source: the locations in the discovery documents of Dataflow and Vertex AI, which
# google-api-python-client ships. The list is part of the source because a wrong region must be
# noticed before any API is enabled, and because most services treat a region that does not exist
# like an empty one.
REGIONS = (
    "africa-south1",
    "asia-east1",
    "asia-east2",
    "asia-northeast1",
    "asia-northeast2",
    "asia-northeast3",
    "asia-south1",
    "asia-south2",
    "asia-southeast1",
    "asia-southeast2",
    "asia-southeast3",
    "australia-southeast1",
    "australia-southeast2",
    "europe-central2",
    "europe-north1",
    "europe-north2",
    "europe-southwest1",
    "europe-west1",
    "europe-west10",
    "europe-west12",
    "europe-west15",
    "europe-west2",
    "europe-west3",
    "europe-west4",
    "europe-west6",
    "europe-west8",
    "europe-west9",
    "me-central1",
    "me-central2",
    "me-west1",
    "northamerica-northeast1",
    "northamerica-northeast2",
    "northamerica-south1",
    "southamerica-east1",
    "southamerica-west1",
    "us-central1",
    "us-central2",
    "us-central6",
    "us-east1",
    "us-east4",
    "us-east5",
    "us-east7",
    "us-south1",
    "us-west1",
    "us-west2",
    "us-west3",
    "us-west4",
    "us-west8",
)


def region_fault(region: str) -> str:
    """Return what is wrong with a region, or an empty text if the region exists."""
    if region in REGIONS:
        return ""
    near = suggest(region, REGIONS)
    return (
        f"{region!r}: expected a region such as us-central1; Google Cloud has no such region{near}"
    )
