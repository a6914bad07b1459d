"""Start a run as a Dataflow job: check it, submit it, and print where to find it.

The process that starts a job ends at once. `launch --attach` can follow the job from any machine,
because the job carries the facts that it needs (pipelines/dataflow/facts.py).
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import apache_beam as beam
import orjson
import requests
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.utils.retry import PermanentException
from google.api_core import exceptions

from cloud.clients import credentials
from cloud.endpoints import Endpoints, is_plain, rest_url
from cloud.errors import explain
from cloud.regions import REGIONS
from common import terminal
from common.addresses import without_secrets
from common.errors import JobError, UsageError, one_line, suggest
from common.private_beam.any_runner import carried_options
from pipelines.beam_args import is_dry_run, is_secret, runs_in_process, runs_on_dataflow
from pipelines.cloud_access import connect
from pipelines.config import Predictor
from pipelines.dataflow.facts import PREFIX, JobFacts, labels_of, option_names
from pipelines.dataflow.jobs import DEVELOPER, job_errors
from pipelines.dataflow.links import links, starting
from pipelines.dataflow.worker_packages import (
    check_workers_packages,
    installs,
    installs_packages,
    names_accelerator,
    staging,
)
from pipelines.extra_packages import stage
from pipelines.options import DeviceOptions
from pipelines.options.flag import Parsed
from transforms.files.sink.run_folder import RunFolder
from transforms.files.sink.staging import check_writable, discard, discard_dead

# The default for a job with `--device cuda`: it fits the default machine types.
ACCELERATOR = "accelerator=type:nvidia-tesla-t4;count:1;install-nvidia-driver"
FOLDERS = ("temp_location", "staging_location")
_NAME = re.compile(PipelineOptionsValidator.JOB_PATTERN)
_PROJECT = re.compile(PipelineOptionsValidator.PROJECT_ID_PATTERN)


def reach(parsed: Parsed, options: PipelineOptions) -> Endpoints:
    """Return the service addresses of a run, after a check of what would make a Dataflow job fail.

    The checks happen before anything is read or created.

    Args:
        parsed: All flags of the run.
        options: Beam's options of the run. This function sets their Dataflow address.

    Raises:
        UsageError: A flag is missing or invalid.
        CredentialsError: There are no credentials that can be used.
        OutputError: A folder of the job cannot be written.
    """
    if not runs_on_dataflow(options):
        if not runs_in_process(options):
            stage(parsed, options)
        return connect(parsed, options)
    google = options.view_as(GoogleCloudOptions)
    _check_present(options)
    _check_names(google)
    _check_workers(options.view_as(WorkerOptions))
    if not _on_this_machine(google):
        check_paths(parsed, {name: getattr(google, name) for name in FOLDERS})
    stage(parsed, options)
    check_workers_packages(parsed, options)
    endpoints = connect(parsed, options)
    _aim(google, endpoints)
    if not google.no_auth:
        credentials(None)
    if not is_dry_run(options):
        for flag in FOLDERS:
            if getattr(google, flag) is not None:
                _check_folder(flag, getattr(google, flag))
        if google.template_location is not None:
            _check_folder("template_location", os.path.dirname(google.template_location))
    return endpoints


def _region(google: GoogleCloudOptions) -> str | None:
    """Return the value of the flag.

    Beam's own default is not used, because Beam runs gcloud to find it.
    """
    return google.get_all_options(drop_default=True).get("region")  # type: ignore[no-any-return]


def _check_present(options: PipelineOptions) -> None:
    google = options.view_as(GoogleCloudOptions)
    given = {
        "--project P": google.project,
        "--region us-central1": _region(google),
        "--temp_location gs://BUCKET/tmp": google.temp_location,
    }
    missing = [flag for flag, value in given.items() if not value]
    if missing:
        ways = (
            "; each worker installs Millrace's wheel when it starts, or add --sdk_container_image "
            "IMAGE (`make image` builds one)"
        )
        raise UsageError(
            f"--runner DataflowRunner needs more flags: add {' '.join(missing)}"
            f"{ways if installs_packages(options) else ''}"
        )


def _check_names(google: GoogleCloudOptions) -> None:
    """Raise UsageError, in clearer words, for names that Beam or Dataflow would reject later."""
    region = _region(google) or ""
    if region not in REGIONS:
        near = suggest(region, REGIONS)
        raise UsageError(f"--region {region}: unknown region{near}; use one such as us-central1")
    if not _PROJECT.fullmatch(google.project):
        raise UsageError(
            f"--project {google.project} is invalid: use the id of the project: lowercase letters, "
            "digits and -, starting with a letter (not its number or its name)"
        )
    if not _NAME.fullmatch(google.job_name):
        raise UsageError(
            f"--job_name {google.job_name} is invalid: use lowercase letters, digits and -, "
            "starting with a letter and not ending with -"
        )
    labels_of(google.labels or ())


def _check_workers(workers: WorkerOptions) -> None:
    first, most = workers.num_workers, workers.max_num_workers
    if first and most and first > most:
        raise UsageError(f"--num_workers {first} is more than --max_num_workers {most}")


def _on_this_machine(google: GoogleCloudOptions) -> bool:
    """Return whether the workers run on this machine, as with a stand-in. This is Beam's rule."""
    return "localhost" in google.dataflow_endpoint


def check_paths(parsed: Parsed, folders: Mapping[str, str | None]) -> None:
    """Check that a Dataflow job can reach its files and folders.

    Args:
        parsed: All flags of the run.
        folders: The folders that Beam uses, by flag; None for a flag that was not given.

    Raises:
        UsageError: A path is on this machine, or a folder is not a folder in a bucket.
    """
    for flag, path in _paths(parsed):
        if "://" not in path:
            raise UsageError(
                f"--{flag} {path}: Dataflow workers cannot reach the files of this machine: use a "
                f"bucket, and pass --{flag} gs://BUCKET/..."
            )
    for flag, folder in folders.items():
        if folder is not None and not re.fullmatch(r"gs://[a-z0-9][\w.-]+/.+", folder):
            raise UsageError(f"--{flag} {folder}: expected gs://BUCKET/FOLDER")


def _paths(parsed: Parsed) -> Iterator[tuple[str, str]]:
    """Yield the name of each flag that takes paths, with each of its paths."""
    for group in parsed.groups.values():
        for field in fields(group):
            if field.metadata["param_type"].startswith("GCS_"):
                value = getattr(group, field.name)
                values = value if isinstance(value, tuple) else (value,)
                yield from ((field.name, path) for path in values if path is not None)


def _aim(google: GoogleCloudOptions, endpoints: Endpoints) -> None:
    """Set the address of Dataflow in Beam's options, without credentials for plain HTTP."""
    if endpoints.dataflow is not None:
        google.dataflow_endpoint = rest_url(endpoints.dataflow)
    if is_plain(google.dataflow_endpoint):
        # Beam recognizes a server with a REST API only by this host name.
        google.dataflow_endpoint = google.dataflow_endpoint.replace("127.0.0.1", "localhost")
        google.no_auth = True


def _check_folder(flag: str, path: str) -> None:
    """Raise OutputError if a folder cannot be written; Beam would retry for eight minutes."""
    folder = RunFolder(path.rstrip("/"), f"start-{uuid.uuid4().hex}", "of")
    try:
        check_writable(folder, f"--{flag} {path}")
    finally:
        discard(folder)


# Beam options for the facts of pipelines/dataflow/facts.py, which a job carries.
_FactOptions = carried_options(option_names())


def carry(options: PipelineOptions, facts: JobFacts) -> None:
    """Add the facts and labels of a run to Beam's options.

    A label that the user has set wins over one of the run.

    Args:
        options: Beam's options of the run, which are changed.
        facts: The facts of the run.
    """
    carried = options.view_as(_FactOptions)
    for name, value in facts.options().items():
        setattr(carried, name, value)
    google = options.view_as(GoogleCloudOptions)
    own = [f"{name}={value}" for name, value in facts.labels().items()]
    # If two labels have the same key, Beam uses the last one.
    google.labels = own + list(google.labels or ())


def ask_for_accelerator(predictor: Predictor, options: PipelineOptions) -> None:
    """Request workers with a GPU for `--device cuda`, unless other flags name an accelerator.

    The resource hint applies to the whole pipeline. With a hint for the predicting step only,
    Dataflow would run that step on separate workers, and send every row to them and back.

    Args:
        predictor: The part of the flags that chooses how to predict.
        options: Beam's options of the run, which are changed.
    """
    standard = options.view_as(StandardOptions)
    if (
        isinstance(predictor, DeviceOptions)
        and predictor.device.startswith("cuda")
        and not names_accelerator(options)
    ):
        standard.resource_hints = [*(standard.resource_hints or ()), ACCELERATOR]


def start(
    pipeline: beam.Pipeline, facts: JobFacts, endpoints: Endpoints, *, as_json: bool = False
) -> None:
    """Submit a pipeline as a job, print where to find it, and return without waiting for it.

    With `--template_location` the job is written to that place, and nothing is started.

    Args:
        pipeline: The pipeline, with the options of the run.
        facts: The facts of the run.
        endpoints: The addresses of the services.
        as_json: Whether to print one JSON object instead of lines.

    Raises:
        JobError: The job cannot be started.
        CredentialsError: There are no credentials that can be used.
        KeyboardInterrupt: Ctrl-C was pressed; the message says how to look for the job.
    """
    google = pipeline.options.view_as(GoogleCloudOptions)
    place, endpoints = (google.project, _region(google) or ""), _with_dataflow(endpoints, google)
    is_started = google.template_location is None
    log = logging.getLogger("apache_beam")
    if log.level == logging.CRITICAL:
        # Beam logs Dataflow's response and then raises it as an error.
        log.setLevel(logging.CRITICAL + 1)
    what = f"job {google.job_name} cannot be started"
    interruptible = starting(*place, google.job_name, endpoints) if is_started else nullcontext()
    with job_errors(what, DEVELOPER), interruptible, staging(pipeline.options):
        try:
            result = pipeline.run()
        except requests.exceptions.RequestException:
            raise
        except exceptions.Conflict as error:
            raise JobError(
                f"{what}: {explain(error).removesuffix('.')}; choose another --job_name, or pass "
                "--update to replace that job"
            ) from error
        except (OSError, ValueError, PermanentException) as error:
            raise JobError(f"{what}: {one_line(error)}") from error
    job = result.job_id() if result.has_job else None
    lines = _lines(job, google, facts)
    if job is not None:
        lines |= links(*place, job, endpoints)
    if as_json:
        print(orjson.dumps(lines).decode())
    else:
        print(terminal.facts(lines.items()))


def _with_dataflow(endpoints: Endpoints, google: GoogleCloudOptions) -> Endpoints:
    """Return the service addresses, with Beam's own `--dataflow_endpoint` if it is given."""
    aimed = google.get_all_options(drop_default=True).get("dataflow_endpoint")
    return replace(endpoints, dataflow=aimed) if aimed else endpoints


def _lines(job: str | None, google: GoogleCloudOptions, facts: JobFacts) -> dict[str, str]:
    """Return what to print about a job that was started, or written if `job` is None."""
    found = {"template": google.template_location} if job is None else {"job": job}
    found |= {"name": google.job_name, "run": facts.run_id}
    for name in ("report", "subscription"):
        if (value := getattr(facts, name)) is not None:
            found[name] = value
    return found


def remove_staged(facts: JobFacts) -> None:
    """Remove the staged files of a batch run that did not end well.

    Jobs of earlier versions do not carry their attempt. Of their files, this removes only those of
    attempts that have written nothing for a day.
    """
    for path in facts.staging:
        root = path.removesuffix(f"/.staging/{facts.run_id}")
        folder = RunFolder(root, facts.run_id, facts.attempt or "unknown")
        discard(folder)
        discard_dead(folder)


def describe_pipeline(pipeline: beam.Pipeline, facts: JobFacts) -> str:
    """Return the text of a dry run: the facts, labels, options and steps, without secrets.

    Args:
        pipeline: The pipeline, which is not started.
        facts: The facts of the run.
    """
    options = pipeline.options
    carried, own = facts.options(), {"dry_run", "labels", *facts.options()}
    given = options.get_all_options(drop_default=True, retain_unknown_options=True)
    labels = options.view_as(GoogleCloudOptions).labels or ()
    shown = {n: v for n, v in sorted(given.items()) if n not in own and not is_secret(n)}
    installed = installs(options) if runs_on_dataflow(options) else []
    lines = [
        ("dry run", "nothing was created or started; of the sinks, only tables were checked"),
        *(
            (name.removeprefix(PREFIX), _text(value))
            for name, value in carried.items()
            if value != []
        ),
        *(("label", label) for label in labels),
        *(("option", f"--{name} {_text(value)}") for name, value in shown.items()),
        *(("install", _text(line)) for line in installed),
        *(("step", name) for name in _steps(pipeline)),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _text(value: Any) -> str:
    return without_secrets(" ".join(map(str, value)) if isinstance(value, list) else str(value))


def _steps(pipeline: beam.Pipeline) -> list[str]:
    """Return the top steps of a pipeline's graph, in order."""
    proto = pipeline.to_runner_api()
    transforms = proto.components.transforms
    graphs = transforms[proto.root_transform_ids[0]].subtransforms
    return [
        transforms[part].unique_name for graph in graphs for part in transforms[graph].subtransforms
    ]
