"""Build the request that starts a Flex Template from flags. Nothing is sent or started here."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from common.command_names import as_typed
from common.errors import UsageError, suggest
from pipelines.dataflow.facts import labels_of
from pipelines.launch.command import PIPELINES
from pipelines.options.flag import as_text
from pipelines.options.launch import AT_LEAST_ONCE

# Options by Beam's names, and the fields of a template's environment that take the same values.
_ENVIRONMENT = {
    "num_workers": "numWorkers",
    "max_num_workers": "maxWorkers",
    "machine_type": "machineType",
    "disk_size_gb": "diskSizeGb",
    "service_account_email": "serviceAccountEmail",
    "temp_location": "tempLocation",
    "staging_location": "stagingLocation",
    "network": "network",
    "subnetwork": "subnetwork",
    "dataflow_kms_key": "kmsKeyName",
    "worker_region": "workerRegion",
    "worker_zone": "workerZone",
    "zone": "zone",
    "sdk_container_image": "sdkContainerImage",
}
_AUTOSCALING = {"NONE": "NONE", "THROUGHPUT_BASED": "BASIC"}
# Options that another part of the request carries, or that the template itself sets.
_ELSEWHERE = {
    *("project", "region", "job_name", "runner", "streaming", "update", "transform_name_mapping"),
    *("experiments", "dataflow_service_options", "labels", "use_public_ips", "flexrs_goal"),
    *("autoscaling_algorithm", "enable_streaming_engine", "save_main_session", "dry_run"),
    *("dataflow_endpoint", "no_auth"),
}
# Options that only a launch from source can use: the image of a template already contains all code.
_OF_SOURCE = {
    name: f"--{name}"
    for name in (
        *("setup_file", "requirements_file", "template_location"),
        "prebuild_sdk_container_engine",
    )
    # Millrace's own --extra_packages is a parameter of the template.
} | {"extra_packages": "--extra_package"}
# Beam's flag chooses the account that submits the job. The job of a template is submitted by the
# launcher, within Dataflow. The launch itself, and all requests before and after it, come from this
# machine.
_IMPERSONATE = (
    "--impersonate_service_account cannot be used with --template, because a template is launched "
    "with the credentials of this machine: leave out --impersonate_service_account, and first run "
    "`gcloud auth application-default login --impersonate-service-account ACCOUNT`; the job runs "
    "as --service_account_email"
)
_MODES = {
    True: "STREAMING_MODE_AT_LEAST_ONCE",
    False: "STREAMING_MODE_EXACTLY_ONCE",
}


def launch_request(
    template: str,
    flags: Mapping[str, Any],
    parameters: Mapping[str, str],
    *,
    streaming: bool,
) -> dict[str, Any]:
    """Return the LaunchFlexTemplateRequest of a job as JSON.

    Args:
        template: The path of the template's spec file, gs://BUCKET/PATH.
        flags: All flags of the job, by Beam's names of options.
        parameters: The parameters of the template.
        streaming: Whether the job is a stream.

    Raises:
        UsageError: A flag cannot be used with a template.
    """
    wrong = [
        f"{flag} cannot be used with --template, because the image of the template already "
        f"contains all code: leave out {flag}"
        for name, flag in _OF_SOURCE.items()
        if flags.get(name)
    ]
    if flags.get("impersonate_service_account"):
        wrong.append(_IMPERSONATE)
    if wrong:
        raise UsageError("; ".join(wrong))
    launched: dict[str, Any] = {
        "jobName": flags["job_name"],
        "containerSpecGcsPath": template,
        "parameters": dict(parameters),
        "environment": _environment(flags, streaming),
    }
    if flags.get("update"):
        launched["update"] = True
        if flags.get("transform_name_mapping"):
            launched["transformNameMappings"] = dict(flags["transform_name_mapping"])
    return {
        "projectId": flags["project"],
        "location": flags["region"],
        "launchParameter": launched,
    }


def _environment(flags: Mapping[str, Any], streaming: bool) -> dict[str, Any]:
    """Return the FlexTemplateRuntimeEnvironment of a job as JSON."""
    found = {
        field: flags[name] for name, field in _ENVIRONMENT.items() if flags.get(name) is not None
    }
    services = list(flags.get("dataflow_service_options", ()))
    if streaming:
        found["enableStreamingEngine"] = True
        found["streamingMode"] = _MODES[AT_LEAST_ONCE in services]
        services = [option for option in services if option != AT_LEAST_ONCE]
    # The launcher turns experiments with these names into service options.
    found["additionalExperiments"] = [*flags.get("experiments", ()), *services]
    if flags.get("labels"):
        found["additionalUserLabels"] = labels_of(flags["labels"])
    if flags.get("use_public_ips") is not None:
        kind = "PUBLIC" if flags["use_public_ips"] else "PRIVATE"
        found["ipConfiguration"] = f"WORKER_IP_{kind}"
    if flags.get("flexrs_goal"):
        found["flexrsGoal"] = f"FLEXRS_{flags['flexrs_goal']}"
    if flags.get("autoscaling_algorithm"):
        algorithm = _AUTOSCALING[flags["autoscaling_algorithm"]]
        found["autoscalingAlgorithm"] = f"AUTOSCALING_ALGORITHM_{algorithm}"
    rest = [
        option
        for name, value in flags.items()
        if name not in _ENVIRONMENT and name not in _ELSEWHERE and name not in _OF_SOURCE
        for option in _options(name, value)
    ]
    return found | ({"additionalPipelineOptions": rest} if rest else {})


def _options(name: str, value: Any) -> list[str]:
    """Return one of Beam's options as flags.

    Beam takes the values of a list one by one, and switches an option off with a separate flag.
    """
    if value is False:
        return [f"no_{name}=true"]
    values = value if isinstance(value, list) else [value]
    return [f"{name}={json.dumps(v) if isinstance(v, dict) else as_text(v)}" for v in values]


def parameters_of(groups: Mapping[type[Any], Any]) -> dict[str, str]:
    """Return the parameters of a template: the pipeline's flags that differ from their defaults.

    Args:
        groups: The values of the pipeline's flags, by group.
    """
    return {
        f.name: as_text(getattr(group, f.name))
        for kind, group in groups.items()
        for f in dataclasses.fields(kind)
        if f.metadata["in_template"] and getattr(group, f.name) != f.default
    }


def check_parameters(
    name: str, template: str, spec: Mapping[str, Any], parameters: Mapping[str, str]
) -> None:
    """Check that a template fits the pipeline and the parameters.

    A template may be older or newer than this source, or belong to another pipeline.

    Args:
        name: The name of the pipeline, such as `batch_local`.
        template: The path of the template's spec file, for messages.
        spec: The content of the spec file.
        parameters: The parameters for the template.

    Raises:
        UsageError: The template does not fit; the message names all wrong parameters.
    """
    metadata = spec.get("metadata") or {}
    known = {parameter["name"]: parameter for parameter in metadata.get("parameters", [])}
    if not known:
        raise UsageError(
            f"--template {template} has no parameters in its metadata: create it with "
            "`make template`"
        )
    title = str(metadata.get("name", ""))
    of_title = {command.title: other for other, command in PIPELINES.items()}
    other = of_title.get(title, name)
    if other != name:
        raise UsageError(
            f"--template {template} is a template of {other}: pass a template of {name}, or run "
            f"{as_typed(f'pipelines.launch {other}')}"
        )
    if bool(metadata.get("streaming")) != name.startswith("stream"):
        kind = "stream" if metadata.get("streaming") else "batch run"
        raise UsageError(
            f"--template {template} ({title}) starts a {kind}: pass a template of {name}"
        )
    wrong = _wrong_parameters(known, parameters)
    if wrong:
        raise UsageError(f"{template}: {'; '.join(wrong)}")


def _wrong_parameters(
    known: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, str]
) -> list[str]:
    """Return what is wrong with parameters for a template, given the ones that it has."""
    wrong = [
        f"the template has no parameter --{given}{suggest(given, known)}"
        for given in parameters
        if given not in known
    ]
    for flag, parameter in known.items():
        value = parameters.get(flag)
        if value is None:
            if not parameter.get("isOptional"):
                wrong.append(f"--{flag} is missing: {parameter.get('helpText', '')}".rstrip(": "))
            continue
        if not all(re.search(pattern, value) for pattern in parameter.get("regexes", [])):
            help_text = parameter.get("helpText", "use another value")
            wrong.append(f"--{flag} {value} is invalid for the template: {help_text}".rstrip("."))
        choices = [option["value"] for option in parameter.get("enumOptions", [])]
        if choices and value not in choices:
            wrong.append(f"--{flag} must be one of {', '.join(choices)}, got {value}")
    return wrong
