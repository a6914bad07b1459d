"""The request that starts a template: built from flags, and valid for Google's client."""

from typing import Any

import pytest
from google.cloud.dataflow_v1beta3 import LaunchFlexTemplateRequest
from google.protobuf.json_format import MessageToDict, ParseDict

from common.errors import UsageError
from examples.google_api.discovery import load_document
from pipelines import batch_local, stream_local
from pipelines.beam_args import given_flags
from pipelines.command import Command
from pipelines.launch.presets import complete
from pipelines.launch.request import check_parameters, launch_request, parameters_of
from pipelines.metadata import TEMPLATES, template
from pipelines.options.flag import parse_flags
from pipelines.options.launch import LaunchOptions

PATH = "gs://b/templates/x.json"
GIVEN = {"project": "a-project", "region": "us-central1", "job_name": "a-job"}
EVERYTHING = GIVEN | {
    "temp_location": "gs://b/tmp",
    "staging_location": "gs://b/staging",
    "service_account_email": "a@p.iam.gserviceaccount.com",
    "subnetwork": "regions/us-central1/subnetworks/a",
    "network": "n",
    "dataflow_kms_key": "projects/p/locations/us-central1/keyRings/r/cryptoKeys/k",
    "worker_zone": "us-central1-a",
    "sdk_container_image": "r/i",
    "labels": ["team=fraud", '{"cost": "a"}'],
    "use_public_ips": False,
    "autoscaling_algorithm": "THROUGHPUT_BASED",
    "number_of_worker_harness_threads": 4,
    "sdk_harness_log_level_overrides": {"a": "DEBUG"},
    "enable_hot_key_logging": True,
    "pipeline_type_check": False,
    "resource_hints": ["min_ram=4GB", "accelerator=type:a;count:1"],
    "update": True,
    "transform_name_mapping": {"old": "new"},
}


def request(name: str, **fields: Any) -> dict[str, Any]:
    launch = LaunchOptions(preset="gpu")
    flags = complete(fields, launch, name)
    return launch_request(PATH, flags, {"model": "gs://b/m"}, streaming=name.startswith("stream"))


@pytest.mark.parametrize("name", ["batch_local", "stream_local"])
@pytest.mark.parametrize("given", [GIVEN, EVERYTHING])
def test_googles_client_and_document_accept_the_whole_request(
    name: str, given: dict[str, Any]
) -> None:
    built = request(name, **given)
    message = LaunchFlexTemplateRequest()
    ParseDict(built, type(message).pb(message))
    assert MessageToDict(type(message).pb(message)) == built
    document = load_document("dataflow.v1b3")
    (method,) = (m for m in document.methods if m.id.endswith("flexTemplates.launch"))
    body = {"launchParameter": built["launchParameter"]}
    assert document.read_body(method, body, partial=False)[1] == []


def test_every_flag_is_in_its_field() -> None:
    launched = request("stream_local", **EVERYTHING)["launchParameter"]
    assert launched["update"]
    assert launched["transformNameMappings"] == {"old": "new"}
    environment = launched["environment"]
    assert environment["ipConfiguration"] == "WORKER_IP_PRIVATE"
    assert environment["streamingMode"] == "STREAMING_MODE_AT_LEAST_ONCE"
    assert environment["enableStreamingEngine"] is True
    assert environment["additionalUserLabels"] == {"team": "fraud", "cost": "a"}
    assert environment["autoscalingAlgorithm"] == "AUTOSCALING_ALGORITHM_BASIC"
    assert set(environment["additionalExperiments"]) == {
        "use_runner_v2",
        "no_use_multiple_sdk_containers",
        "min_num_workers=1",
        "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver",
    }
    assert set(environment["additionalPipelineOptions"]) == {
        "number_of_worker_harness_threads=4",
        'sdk_harness_log_level_overrides={"a": "DEBUG"}',
        "enable_hot_key_logging=true",
        "no_pipeline_type_check=true",
        "resource_hints=min_ram=4GB",
        "resource_hints=accelerator=type:a;count:1",
    }


def test_beam_reads_its_options_back_as_they_were_given() -> None:
    argv = ["--no_pipeline_type_check", "--worker_disk_type", "a/b", "--profile_cpu"]
    argv += ["--resource_hints", "min_ram=4GB", "--resource_hints", "accelerator=type:a;count:1"]
    argv += ["--sdk_harness_log_level_overrides", '{"a.b": "DEBUG"}', "--profile_sample_rate", "1"]
    argv += ["--gcs_custom_audit_entry", "a=b c,d"]
    given = given_flags(argv)
    environment = launch_request(PATH, GIVEN | given, {}, streaming=False)["launchParameter"][
        "environment"
    ]
    options = [f"--{option}" for option in environment["additionalPipelineOptions"]]
    assert given_flags([option.removesuffix("=true") for option in options]) == given


def environment_of(flags: dict[str, Any], *, streaming: bool) -> Any:
    return launch_request(PATH, flags, {}, streaming=streaming)["launchParameter"]["environment"]


def test_flexrs_and_exactly_once_have_their_fields() -> None:
    cheap = complete(GIVEN, LaunchOptions(preset="cheap"), "batch_local")
    environment = environment_of(cheap, streaming=False)
    assert environment["flexrsGoal"] == "FLEXRS_COST_OPTIMIZED"
    assert "enableStreamingEngine" not in environment
    exactly = complete(GIVEN, LaunchOptions(streaming_mode="exactly_once"), "stream_local")
    environment = launch_request(PATH, exactly, {}, streaming=True)["launchParameter"][
        "environment"
    ]
    assert environment["streamingMode"] == "STREAMING_MODE_EXACTLY_ONCE"


def test_a_flag_that_only_a_launch_from_source_can_use_is_rejected() -> None:
    with pytest.raises(
        UsageError,
        match=r"--setup_file cannot be used with --template, because the image of the template "
        "already contains all code: leave out --setup_file",
    ):
        request("batch_local", **GIVEN, setup_file="./setup.py")


def parameters(command: Command, *argv: str) -> dict[str, str]:
    return parameters_of(parse_flags(command.name, "", command.options, argv).groups)


def test_parameters_are_the_flags_that_differ_from_their_defaults() -> None:
    argv = ["--input_files", "/a", "/b,/c", "--model", "/m", "--compile", "--batch_rows", "5"]
    argv += ["--debug", "--json_summary"]
    assert parameters(batch_local.COMMAND, *argv) == {
        "input_files": "/a,/b,/c",
        "model": "/m",
        "compile": "true",
        "batch_rows": "5",
    }


@pytest.mark.parametrize("text", ["0.00001", "0.5", "1.0"])
def test_a_small_share_is_written_without_an_exponent(text: str) -> None:
    given = parameters(batch_local.COMMAND, "--model", "m", "--max_dead_letter_share", text)
    assert given.get("max_dead_letter_share", "0.5") == text
    assert check("batch_local", given) == ""


def test_values_are_passed_on_unchanged() -> None:
    query = "SELECT `a`, 'b=\"c\"'\nFROM t WHERE n = 'Zoë, 1'"
    argv = ["--input_query", query, "--model", "gs://b/a b=c"]
    assert parameters(batch_local.COMMAND, *argv) == {"input_query": query, "model": argv[3]}


def spec(name: str) -> dict[str, Any]:
    (found,) = (template(c) for c in TEMPLATES if c.name == name)
    return {"image": "r/i", "metadata": found}


def check(name: str, given: dict[str, str], pipeline: str = "batch_local") -> str:
    try:
        check_parameters(pipeline, PATH, spec(name), given)
    except UsageError as error:
        return str(error)
    return ""


def test_parameters_are_checked_against_the_template() -> None:
    assert check("batch_local", {"model": "m", "precision": "bf16", "batch_rows": "5"}) == ""
    message = check("batch_local", {"mode": "m", "precision": "int8", "batch_rows": "0"})
    assert "the template has no parameter --mode (did you mean 'model" in message
    assert "--model is missing: Model package" in message
    assert "--precision must be one of float32, tf32, bf16, fp16, auto, got int8" in message
    assert "--batch_rows 0 is invalid for the template: Maximum number of rows" in message


def test_a_template_of_another_pipeline_is_rejected() -> None:
    for other in ("batch_vertex", "stream_local"):
        message = check(other, {"model": "m"})
        assert f"is a template of {other}: pass a template of batch_local, or run" in message
    own = {"name": "Mine", "streaming": True, "parameters": [{"name": "model"}]}
    with pytest.raises(
        UsageError, match=r"\(Mine\) starts a stream: pass a template of batch_local"
    ):
        check_parameters("batch_local", PATH, {"metadata": own}, {})
    with pytest.raises(UsageError, match="has no parameters in its metadata"):
        check_parameters("batch_local", PATH, {"image": "r/i"}, {})


def test_the_parameters_of_a_stream_are_accepted() -> None:
    argv = ["--input_subscription", "projects/p/subscriptions/s", "--model", "m"]
    argv += ["--output_files", "o"]
    assert check("stream_local", parameters(stream_local.COMMAND, *argv), "stream_local") == ""
