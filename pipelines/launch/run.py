"""What `python -m pipelines.launch` does: check everything, then start or follow one job."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TextIO

import orjson
from google.api_core import exceptions

from cloud.clients import Cloud, default_project
from cloud.endpoints import Endpoints
from cloud.errors import retry, translate_errors
from cloud.regions import region_fault
from common.addresses import without_secrets
from common.errors import InputError, JobNotMonitored, MillraceError, UsageError
from common.terminal import Progress, facts, print_error
from pipelines.dataflow.facts import JobFacts
from pipelines.dataflow.jobs import Jobs
from pipelines.dataflow.links import attach_command, console_link, interrupted, links, starting
from pipelines.launch.command import PIPELINES
from pipelines.launch.monitor import LOST, NOT_STOPPED, Monitor
from pipelines.launch.presets import complete
from pipelines.launch.request import check_parameters, launch_request, parameters_of
from pipelines.options import CloudOptions
from pipelines.options.flag import Parsed
from pipelines.options.launch import AttachOptions, LaunchOptions
from pipelines.options.rules import all_given, check_batch, check_stream, require

# How long one poll is retried, in seconds: the next poll follows soon.
_POLL_RETRY_SECONDS = 20.0


def launch(name: str, parsed: Parsed) -> int:
    """Start a pipeline on Dataflow, and follow the job if `--wait` is given.

    Args:
        name: The name of the pipeline, such as `batch_local`.
        parsed: All flags.

    Returns:
        The exit code.

    Raises:
        UsageError: A flag is invalid. Nothing has been started then. The same holds for all errors
            of the pipeline's own command.
        JobError: The job cannot be started, or it failed.
    """
    from pipelines.beam_args import given_flags
    from pipelines.dataflow.job_name import job_name
    from pipelines.runners import DATAFLOW, is_dataflow

    flags = parsed.get(LaunchOptions)
    given = given_flags(parsed.beam_args)
    if not is_dataflow(given.get("runner", DATAFLOW)):
        raise UsageError(
            f"--runner {given['runner']}: this command always runs on Dataflow: leave out --runner"
        )
    if given.get("update") and not name.startswith("stream"):
        raise UsageError(
            f"--update replaces a stream; {name} is a batch pipeline: leave out --update"
        )
    if given.get("transform_name_mapping") and not given.get("update"):
        raise UsageError("--transform_name_mapping has no effect without --update")
    needed = {flag: given.get(flag) for flag in ("project", "region", "temp_location")}
    check = check_stream if name.startswith("stream") else check_batch
    check(name, parsed, f"launch {name}", **needed)
    job = complete(given, flags, name) | {"runner": DATAFLOW}
    job.setdefault("job_name", job_name(name))
    own = Parsed(
        {kind: parsed.groups[kind] for kind in PIPELINES[name].options},
        [*parsed.beam_args, *added_args(given, job)],
    )
    start = _from_source if flags.template is None else _from_template
    return start(name, flags, own, job)


def added_args(given: Mapping[str, Any], job: Mapping[str, Any]) -> list[str]:
    """Return, as arguments, the flags of a job that were not given.

    Args:
        given: The given flags of Dataflow: a value, or a list of values, by Beam's name of the
            option.
        job: All flags of the job, in the same form.
    """
    added = []
    for name, value in job.items():
        if isinstance(value, list):
            added += [f"--{name}={one}" for one in value if one not in given.get(name, ())]
        elif name not in given:
            added.append(f"--{name}={value}")
    return added


def _run(name: str, parsed: Parsed) -> None:
    """Run a pipeline's own command in this process."""
    module, _, function = PIPELINES[name].run.partition(":")
    getattr(importlib.import_module(module), function)(parsed)


def _from_source(name: str, flags: LaunchOptions, own: Parsed, job: Mapping[str, Any]) -> int:
    if not flags.wait or job.get("dry_run") or job.get("template_location"):
        _run(name, own)
        return 0
    with contextlib.redirect_stdout(_for_people(own)):
        _run(name, _without_json(own))
    return _follow(Jobs(_cloud(own, job)), job["job_name"], job["region"], flags, own)


def _from_template(name: str, flags: LaunchOptions, own: Parsed, job: Mapping[str, Any]) -> int:
    from pipelines.dataflow.start import FOLDERS, check_paths

    streaming = name.startswith("stream")
    template = str(flags.template)
    advice = _checked_advice(name, own, job) if streaming else ""
    parameters = parameters_of(own.groups)
    check_paths(own, {folder: job.get(folder) for folder in FOLDERS})
    request = launch_request(template, job, parameters, streaming=streaming)
    check_parameters(name, template, _read_spec(template, own, job), parameters)
    if job.get("update"):
        _check_update(name, own, job)
    if job.get("dry_run"):
        text = orjson.dumps(_shown(request), option=orjson.OPT_INDENT_2).decode()
        print(without_secrets(text))
        return 0
    jobs = Jobs(_cloud(own, job))
    endpoints = jobs.cloud.endpoints
    place = (job["project"], job["region"])
    with starting(*place, job["job_name"], endpoints):
        ident = jobs.launch(request)
    if advice:
        print(advice, file=sys.stderr, flush=True)
    started = {"job": ident, "name": job["job_name"], **links(*place, ident, endpoints)}
    lines = facts(started.items())
    if not flags.wait:
        print(orjson.dumps(started).decode() if _as_json(own) else lines)
        return 0
    print(lines, file=_for_people(own), flush=True)
    expected = None if streaming else _expected_facts(name, own, job["temp_location"])
    return _follow(jobs, ident, job["region"], flags, own, expected=expected)


def _checked_advice(name: str, own: Parsed, job: Mapping[str, Any]) -> str:
    """Check the source of a stream; return how to stop its job, as `drain_advice` does."""
    from pipelines.stream.config import stream_config
    from pipelines.stream.promises import check_dataflow, drain_advice

    config = stream_config(name, own)
    check_dataflow(config, job.get("dataflow_service_options", ()))
    return drain_advice(config)


def _expected_facts(name: str, own: Parsed, temp_location: str) -> JobFacts:
    """Return the facts that the job of a batch template should carry, except for the model."""
    from pipelines.batch.config import batch_config
    from pipelines.batch.destinations import report_place

    config = batch_config(name, own)
    return JobFacts(
        pipeline=name,
        run_id=config.run.run_id or "",
        model="",
        model_digest="",
        report=report_place(config, temp_location),
        max_dead_letter_share=config.max_dead_letter_share,
        min_rows=config.min_rows,
    )


def _follow(
    jobs: Jobs,
    ident: str,
    region: str,
    flags: LaunchOptions,
    own: Parsed,
    *,
    expected: JobFacts | None = None,
) -> int:
    """Follow a started job, given by id or name, to its end, and return the exit code."""
    cloud = jobs.cloud
    command = attach_command(cloud.project, region, ident, cloud.endpoints)
    again = f"the job was {NOT_STOPPED}; follow it with `{command}`"
    try:
        with interrupted(again):
            job = jobs.find(ident, region)
    except MillraceError as error:
        print_error(JobNotMonitored(f"{error}; {again}"))
        return LOST
    return replace(_monitor(jobs, flags.poll_seconds, own), expected=expected).follow(job)


def _shown(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request without the values of secrets."""
    from pipelines.beam_args import is_secret

    launched = request["launchParameter"]
    environment = dict(launched["environment"])
    if options := environment.get("additionalPipelineOptions"):
        names = [option.partition("=")[0] for option in options]
        environment["additionalPipelineOptions"] = [
            f"{name}=..." if is_secret(name) else option
            for name, option in zip(names, options, strict=True)
        ]
    return {**request, "launchParameter": {**launched, "environment": environment}}


def _read_spec(template: str, own: Parsed, job: Mapping[str, Any]) -> dict[str, Any]:
    """Read the spec file of a template; raise InputError if it cannot be read."""
    cloud = _cloud(own, job)
    bucket, _, path = template.removeprefix("gs://").partition("/")
    with translate_errors(InputError, f"--template {template} cannot be read"):
        blob = cloud.storage().bucket(bucket).blob(path)
        try:
            content = blob.download_as_bytes(retry=retry(cloud.retry_seconds))
        except exceptions.NotFound as error:
            raise InputError(
                f"--template {template} does not exist: create it with `make template`"
            ) from error
    try:
        spec = orjson.loads(content)
    except ValueError:
        spec = None
    if not isinstance(spec, dict) or "image" not in spec:
        raise InputError(
            f"--template {template} is not the spec file of a Flex Template: create one with "
            "`make template`"
        )
    return spec


def _check_update(name: str, own: Parsed, job: Mapping[str, Any]) -> None:
    """Compare the running job with the pipeline of this source, with a dry run.

    This assumes that the template's image has the same version as this source.
    """
    args = [*own.beam_args, "--dry_run=true"]
    if not job.get("sdk_container_image"):
        args.append("--sdk_container_image=of-the-template")
    with contextlib.redirect_stdout(io.StringIO()):
        _run(name, replace(own, beam_args=args))


def _endpoints(own: Parsed) -> Endpoints:
    return Endpoints.resolve(own.get(CloudOptions).api_endpoints or ())


def _cloud(own: Parsed, job: Mapping[str, Any]) -> Cloud:
    endpoints = _endpoints(own)
    if endpoints.dataflow is None and job.get("dataflow_endpoint"):
        endpoints = replace(endpoints, dataflow=job["dataflow_endpoint"])
    return Cloud(job["project"], endpoints, float(own.get(CloudOptions).retry_seconds))


def _as_json(own: Parsed) -> bool:
    return any(getattr(group, "json_summary", False) for group in own.groups.values())


def _without_json(own: Parsed) -> Parsed:
    """Return the flags with `--json_summary` switched off."""
    groups = {
        kind: replace(group, json_summary=False) if hasattr(group, "json_summary") else group
        for kind, group in own.groups.items()
    }
    return replace(own, groups=groups)


def _for_people(own: Parsed) -> TextIO:
    """Return the stream for lines: with `--json_summary`, standard output has only the report."""
    return sys.stderr if _as_json(own) else sys.stdout


def _monitor(jobs: Jobs, poll_seconds: int, own: Parsed) -> Monitor:
    seconds = min(jobs.cloud.retry_seconds, _POLL_RETRY_SECONDS)
    jobs = Jobs(replace(jobs.cloud, retry_seconds=seconds))
    screen = Progress(out=_for_people(own))
    return Monitor(
        jobs=jobs, screen=screen, poll_seconds=float(poll_seconds), json_summary=_as_json(own)
    )


def attach(parsed: Parsed) -> int:
    """Follow a running job to its end.

    Args:
        parsed: The flags of `launch --attach`.

    Returns:
        The exit code.

    Raises:
        UsageError: A flag is missing or invalid, or there is no such job.
        JobError: The job cannot be found, or it failed.
        CredentialsError: There are no credentials that can be used.
        TooManyDeadLetters: The run left more dead letters than its flags allow.
    """
    flags = parsed.get(AttachOptions)
    _refuse_others(parsed.beam_args)
    given = all_given(parsed)
    require("launch", given, attach=flags.attach)
    if flags.region is not None and (fault := region_fault(flags.region)):
        raise UsageError(f"--region: {fault}")
    endpoints = _endpoints(parsed)
    is_googles = not any(vars(endpoints).values())
    project = flags.project or (default_project() if is_googles else None)
    require("launch", given, attach=flags.attach, project=project)
    jobs = Jobs(Cloud(str(project), endpoints, float(parsed.get(CloudOptions).retry_seconds)))
    job = jobs.find(str(flags.attach), flags.region)
    monitor = _monitor(jobs, flags.poll_seconds, parsed)
    console = console_link(job.project, job.region, job.ident)
    monitor.screen.say(facts([("job", f"{job.name}  {job.ident}"), ("console", console)]))
    return monitor.follow(job)


def _refuse_others(args: Sequence[str]) -> None:
    if args:
        raise UsageError(
            f"unknown flag {args[0]}: expected the name of a pipeline first "
            f"({', '.join(PIPELINES)}), or --attach JOB --project P --region R"
        )


batch_local, batch_vertex, stream_local, stream_vertex = (
    functools.partial(launch, name) for name in PIPELINES
)
