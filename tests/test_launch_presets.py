"""Presets, and flags that exclude each other."""

from typing import Any

import pytest

from common.errors import UsageError
from pipelines.launch.presets import complete
from pipelines.launch.run import added_args
from pipelines.options.launch import LaunchOptions

PIPELINES = ("batch_local", "batch_vertex", "stream_local", "stream_vertex")


def flags(pipeline: str, launch: LaunchOptions | None = None, **given: Any) -> dict[str, Any]:
    return complete(given, launch or LaunchOptions(), pipeline)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_pipeline_gets_the_workers_of_its_kind_with_a_minimum(pipeline: str) -> None:
    found = flags(pipeline)
    most = 20 if pipeline.startswith("stream") else 10
    assert (found["num_workers"], found["max_num_workers"]) == (2, most)
    assert "min_num_workers=2" in found["dataflow_service_options"]
    assert found["experiments"] == ["use_runner_v2"]
    assert found["machine_type"] == "n1-standard-4"


def test_flags_of_dataflow_win_over_a_preset() -> None:
    found = flags(
        "batch_local",
        machine_type="e2-standard-8",
        num_workers=5,
        dataflow_service_options=["min_num_workers=4", "enable_prime"],
        experiments=["shuffle_mode=appliance"],
    )
    assert found["machine_type"] == "e2-standard-8"
    assert found["num_workers"] == 5
    assert found["dataflow_service_options"] == ["min_num_workers=4", "enable_prime"]
    assert found["experiments"] == ["shuffle_mode=appliance", "use_runner_v2"]
    assert flags("batch_local", max_num_workers=1)["num_workers"] == 1


def test_a_minimum_given_as_a_service_option_is_the_initial_number() -> None:
    found = flags("batch_local", dataflow_service_options=["min_num_workers=6"])
    assert found["num_workers"] == 6


def test_a_streaming_mode_given_as_a_service_option_wins() -> None:
    mode = "streaming_mode_exactly_once"
    found = flags("stream_local", dataflow_service_options=[mode])
    assert found["dataflow_service_options"] == [mode, "min_num_workers=2"]


def test_only_flags_that_were_not_given_are_added_to_the_arguments() -> None:
    given: dict[str, Any] = {"machine_type": "e2-standard-8", "experiments": ["a"]}
    added = added_args(given, flags("batch_local", **given))
    assert "--experiments=use_runner_v2" in added
    assert "--experiments=a" not in added
    assert not any("machine_type" in arg for arg in added)
    assert "--dataflow_service_options=min_num_workers=2" in added


def test_streams_run_at_least_once_unless_exactly_once_is_requested() -> None:
    mode = "streaming_mode_at_least_once"
    assert mode in flags("stream_local")["dataflow_service_options"]
    exactly = LaunchOptions(streaming_mode="exactly_once")
    assert mode not in flags("stream_local", exactly)["dataflow_service_options"]


def test_a_gpu_comes_with_its_driver_and_one_process_or_mps() -> None:
    gpu = flags("stream_local", LaunchOptions(preset="gpu"))
    assert (
        "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
        in (gpu["dataflow_service_options"])
    )
    assert "no_use_multiple_sdk_containers" in gpu["experiments"]
    assert gpu["machine_type"] == "g2-standard-4"
    assert gpu["disk_size_gb"] == 50
    mps = flags("batch_local", LaunchOptions(accelerator="nvidia-tesla-t4:1", gpu_sharing="mps"))
    assert (
        "worker_accelerator=type:nvidia-tesla-t4;count:1;install-nvidia-driver;use_nvidia_mps"
        in mps["dataflow_service_options"]
    )
    assert "no_use_multiple_sdk_containers" not in mps["experiments"]


def test_cheap_is_flexrs_for_batch_and_small_workers_for_streams() -> None:
    batch = flags("batch_vertex", LaunchOptions(preset="cheap"))
    assert batch["flexrs_goal"] == "COST_OPTIMIZED"
    assert "num_workers" not in batch
    stream = flags("stream_vertex", LaunchOptions(preset="cheap"))
    assert "flexrs_goal" not in stream
    assert stream["num_workers"] == 1


GOOD: dict[str, Any] = {
    "project": "a-project",
    "region": "us-central1",
    "temp_location": "gs://b/tmp",
    "subnetwork": "regions/us-central1/subnetworks/a",
    "dataflow_kms_key": "projects/p/locations/us-central1/keyRings/r/cryptoKeys/k",
    "service_account_email": "a@p.iam.gserviceaccount.com",
    "labels": ["team=fraud", "empty="],
    "use_public_ips": False,
}


def test_correct_flags_are_accepted() -> None:
    shared = "https://www.googleapis.com/compute/v1/projects/h/regions/us-central1/subnetworks/a"
    assert flags("batch_local", **GOOD | {"subnetwork": shared})["use_public_ips"] is False


@pytest.mark.parametrize(
    ("launch", "given", "expected"),
    [
        ({}, {"region": "us"}, "--region: 'us': expected a region such as us-central1"),
        ({}, {"project": "12345"}, "--project '12345' is invalid: use 6 to 30"),
        ({}, {"job_name": "My_Job"}, "--job_name 'My_Job' is invalid: use 1 to 63"),
        (
            {},
            {"service_account_email": "me"},
            "--service_account_email 'me' is invalid: use the email",
        ),
        ({}, {"subnetwork": "default"}, "--subnetwork 'default' is invalid: use regions/REGION/"),
        ({}, {"dataflow_kms_key": "key"}, "--dataflow_kms_key 'key' is invalid: use projects/P/"),
        ({}, {"labels": ["Team=A"]}, "--labels Team=A is invalid: use KEY=VALUE"),
        ({}, {"labels": ["{team"]}, "--labels {team is invalid: use KEY=VALUE"),
        ({}, {"labels": ["{'team': 1}"]}, "--labels {'team': 1} is invalid: use KEY=VALUE"),
        (
            {},
            {"subnetwork": "regions/europe-west1/subnetworks/a"},
            "--subnetwork is in europe-west1, but --region is us-central1",
        ),
        (
            {},
            {"dataflow_kms_key": "projects/p/locations/asia1/keyRings/r/cryptoKeys/k"},
            "--dataflow_kms_key is in asia1, but --region is",
        ),
        ({"min_num_workers": 11}, {}, "--min_num_workers 11 is more than --max_num_workers 10"),
        ({}, {"max_num_workers": 0}, "--max_num_workers must be at least 1, got 0"),
        ({}, {"disk_size_gb": -1}, "--disk_size_gb must be at least 1, got -1"),
        ({}, {"num_workers": 30}, "--num_workers 30 is more than --max_num_workers 10"),
        (
            {"preset": "stream"},
            {},
            "--preset stream does not apply to batch_local; choose from batch, gpu, cheap",
        ),
        ({"streaming_mode": "exactly_once"}, {}, "--streaming_mode applies to streaming pipelines"),
        ({"gpu_sharing": "mps"}, {}, "--gpu_sharing needs a GPU"),
        (
            {"accelerator": "nvidia-tesla-t4:2", "gpu_sharing": "mps"},
            {},
            "--gpu_sharing mps needs workers with one GPU, got 2 GPUs: use one GPU, or "
            "--gpu_sharing one_process, which uses all of them",
        ),
        (
            {"accelerator": "nvidia-l4"},
            {},
            "--machine_type n1-standard-4 cannot have nvidia-l4: expected a machine type "
            "that starts with g2-",
        ),
        (
            {"preset": "gpu", "gpu_sharing": "mps"},
            {"experiments": ["no_use_multiple_sdk_containers"]},
            "is the opposite of use_nvidia_mps",
        ),
        ({"preset": "gpu"}, {"flexrs_goal": "COST_OPTIMIZED"}, "FlexRS does not support GPUs"),
        ({"preset": "cheap"}, {"worker_zone": "us-central1-a"}, "FlexRS chooses the zone itself"),
    ],
)
def test_each_wrong_parameter_is_named(
    launch: dict[str, Any], given: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError) as error:
        flags("batch_local", LaunchOptions(**launch), **GOOD | given)
    assert expected in str(error.value)


def test_all_wrong_parameters_are_named_at_once() -> None:
    wrong: dict[str, Any] = {"region": "us", "labels": ["A"], "num_workers": 99}
    with pytest.raises(UsageError) as error:
        flags("batch_local", **GOOD | wrong)
    assert all(text in str(error.value) for text in ("--region", "--labels", "--num_workers 99"))


def test_a_model_behind_an_endpoint_needs_no_gpu() -> None:
    with pytest.raises(UsageError, match="behind an endpoint, so its workers need no GPU"):
        flags("batch_vertex", LaunchOptions(preset="gpu"))
    # The advice for another wrong preset does not name it either.
    with pytest.raises(UsageError, match=r"to batch_vertex; choose from batch, cheap$"):
        flags("batch_vertex", LaunchOptions(preset="stream"))
    with pytest.raises(UsageError, match="--flexrs_goal applies to batch"):
        flags("stream_local", flexrs_goal="COST_OPTIMIZED")
