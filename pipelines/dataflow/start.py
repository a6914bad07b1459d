"""A run that goes on at Dataflow: looked at before, started, told, and left alone.

The process that starts a job ends at once. Who follows it, from whichever machine, reads the
facts that it carries (pipelines/dataflow/facts.py).
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
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
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
from common.addresses import without_secrets
from common.errors import JobError, UsageError, one_line, suggest
from common.private_beam.any_runner import carried_options
from pipelines.beam_args import is_dry_run, is_secret, runs_on_dataflow
from pipelines.cloud_access import connect
from pipelines.config import Predictor
from pipelines.dataflow.facts import PREFIX, JobFacts, labels_of, option_names
from pipelines.dataflow.jobs import DEVELOPER, job_errors
from pipelines.dataflow.links import links, starting
from pipelines.options import DeviceOptions
from pipelines.options.flag import Parsed
from transforms.files.run_folder import RunFolder
from transforms.files.staging import check_writable, discard, discard_dead

# What a job with `--device cuda` gets where no flag says otherwise: it fits the default machines.
ACCELERATOR = "accelerator=type:nvidia-tesla-t4;count:1;install-nvidia-driver"
FOLDERS = ("temp_location", "staging_location")
_NAME = re.compile(PipelineOptionsValidator.JOB_PATTERN)
_PROJECT = re.compile(PipelineOptionsValidator.PROJECT_ID_PATTERN)


def reach(parsed: Parsed, options: PipelineOptions) -> Endpoints:
    """Flags -> the endpoints; where the run is a job of Dataflow, what would fail it is told.

    Raises UsageError, CredentialsError, OutputError: before anything is read or made.
    """
    if not runs_on_dataflow(options):
        return connect(parsed, options)
    google = options.view_as(GoogleCloudOptions)
    _check_present(options)
    _check_names(google)
    _check_workers(options.view_as(WorkerOptions))
    if not _on_this_machine(google):
        _check_image(options)
        check_paths(parsed, {name: getattr(google, name) for name in FOLDERS})
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
    """The flag's value: Beam's own default is a question to gcloud."""
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
        raise UsageError(f"--runner DataflowRunner needs more: add {' '.join(missing)}")


def _check_names(google: GoogleCloudOptions) -> None:
    """What Beam or Dataflow would refuse later, in other words."""
    region = _region(google) or ""
    if region not in REGIONS:
        near = suggest(region, REGIONS)
        raise UsageError(f"--region {region}: expected a region such as us-central1{near}")
    if not _PROJECT.fullmatch(google.project):
        raise UsageError(f"--project {google.project}: expected a project's id, not its number")
    if not _NAME.fullmatch(google.job_name):
        raise UsageError(
            f"--job_name {google.job_name}: expected small letters, digits and -, a letter first"
        )
    labels_of(google.labels or ())


def _check_workers(workers: WorkerOptions) -> None:
    first, most = workers.num_workers, workers.max_num_workers
    if first and most and first > most:
        raise UsageError(f"--num_workers {first} is more than --max_num_workers {most}")


def _on_this_machine(google: GoogleCloudOptions) -> bool:
    """Whether the service has its workers here, as a stand-in for it has: Beam's own rule."""
    return "localhost" in google.dataflow_endpoint


def _check_image(options: PipelineOptions) -> None:
    """Workers have Beam, and nothing of ours, unless a flag brings it."""
    setup = options.view_as(SetupOptions)
    brings = (
        options.view_as(WorkerOptions).sdk_container_image,
        setup.setup_file,
        setup.extra_packages,
        setup.requirements_file,
        setup.prebuild_sdk_container_engine,
    )
    if not any(brings):
        raise UsageError(
            "workers of Dataflow lack this package and torch: add --sdk_container_image IMAGE "
            "(`make image` makes one), or --setup_file ./setup.py, which each installs at its start"
        )


def check_paths(parsed: Parsed, folders: Mapping[str, str | None]) -> None:
    """Flags whose values are files, Beam's folders -> nothing, or UsageError.

    Raises it for a path of this machine, or a bucket alone.
    """
    for flag, path in _paths(parsed):
        if "://" not in path:
            raise UsageError(
                f"--{flag} {path}: workers of Dataflow cannot reach this machine's files: copy it "
                f"to a bucket, and say --{flag} gs://BUCKET/..."
            )
    for flag, folder in folders.items():
        if folder is not None and not re.fullmatch(r"gs://[a-z0-9][\w.-]+/.+", folder):
            raise UsageError(f"--{flag} {folder}: expected gs://BUCKET/FOLDER")


def _paths(parsed: Parsed) -> Iterator[tuple[str, str]]:
    """Flags -> each that names files, and one of its values."""
    for group in parsed.groups.values():
        for field in fields(group):
            if field.metadata["param_type"].startswith("GCS_"):
                value = getattr(group, field.name)
                values = value if isinstance(value, tuple) else (value,)
                yield from ((field.name, path) for path in values if path is not None)


def _aim(google: GoogleCloudOptions, endpoints: Endpoints) -> None:
    """Beam is told the address of Dataflow; a plain one gets no credentials."""
    if endpoints.dataflow is not None:
        google.dataflow_endpoint = rest_url(endpoints.dataflow)
    if is_plain(google.dataflow_endpoint):
        # The one name by which Beam knows a server that speaks REST.
        google.dataflow_endpoint = google.dataflow_endpoint.replace("127.0.0.1", "localhost")
        google.no_auth = True


def _check_folder(flag: str, path: str) -> None:
    """A folder -> files can be made in it, or OutputError: Beam would try for eight minutes."""
    folder = RunFolder(path.rstrip("/"), f"start-{uuid.uuid4().hex}", "of")
    try:
        check_writable(folder, f"--{flag} {path}")
    finally:
        discard(folder)


# The facts of pipelines/dataflow/facts.py, which travel with a job.
_FactOptions = carried_options(option_names())


def carry(options: PipelineOptions, facts: JobFacts) -> None:
    """Beam's options -> with the facts and labels of a run. The user's own labels go before."""
    carried = options.view_as(_FactOptions)
    for name, value in facts.options().items():
        setattr(carried, name, value)
    google = options.view_as(GoogleCloudOptions)
    own = [f"{name}={value}" for name, value in facts.labels().items()]
    # Beam lets the last of two with one key win.
    google.labels = own + list(google.labels or ())


def ask_for_accelerator(predictor: Predictor, options: PipelineOptions) -> None:
    """`--device cuda` -> workers that have one, unless flags of Beam or Dataflow say which.

    A hint for the whole pipeline, not for the step that predicts: Dataflow would give that
    step workers of its own, and send every row to them and back.
    """
    standard = options.view_as(StandardOptions)
    given = [
        *(standard.resource_hints or ()),
        *(options.view_as(GoogleCloudOptions).dataflow_service_options or ()),
        # As the launcher of Flex Templates gives options of the service.
        *(options.view_as(DebugOptions).experiments or ()),
    ]
    if (
        isinstance(predictor, DeviceOptions)
        and predictor.device.startswith("cuda")
        and not any("accelerator" in text for text in given)
    ):
        standard.resource_hints = [*(standard.resource_hints or ()), ACCELERATOR]


def start(
    pipeline: beam.Pipeline, facts: JobFacts, endpoints: Endpoints, *, as_json: bool = False
) -> None:
    """A pipeline with its facts -> a job, named on standard output. Nothing waits for it.

    With --template_location the job is written there, and nothing is started. Raises JobError,
    KeyboardInterrupt with how to look for the job.
    """
    google = pipeline.options.view_as(GoogleCloudOptions)
    place, endpoints = (google.project, _region(google) or ""), _with_dataflow(endpoints, google)
    is_made = google.template_location is None
    log = logging.getLogger("apache_beam")
    if log.level == logging.CRITICAL:
        # Beam logs what Dataflow answers before it raises it.
        log.setLevel(logging.CRITICAL + 1)
    what = f"job {google.job_name} cannot be started"
    may_be_there = starting(*place, google.job_name, endpoints) if is_made else nullcontext()
    with job_errors(what, DEVELOPER), may_be_there:
        try:
            result = pipeline.run()
        except requests.exceptions.RequestException:
            raise
        except exceptions.Conflict as error:
            raise JobError(
                f"{what}: {explain(error)}; choose another --job_name, or --update that job"
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
        print("\n".join(f"{name:<13} {value}" for name, value in lines.items()))


def _with_dataflow(endpoints: Endpoints, google: GoogleCloudOptions) -> Endpoints:
    """Endpoints -> with Dataflow's address, for which Beam has a flag of its own."""
    aimed = google.get_all_options(drop_default=True).get("dataflow_endpoint")
    return replace(endpoints, dataflow=aimed) if aimed else endpoints


def _lines(job: str | None, google: GoogleCloudOptions, facts: JobFacts) -> dict[str, str]:
    """A started job, or none where it was written -> what its user has to know."""
    found = {"template": google.template_location} if job is None else {"job": job}
    found |= {"name": google.job_name, "run": facts.run_id}
    for name in ("report", "subscription"):
        if (value := getattr(facts, name)) is not None:
            found[name] = value
    return found


def remove_staged(facts: JobFacts) -> None:
    """The facts of a batch run that did not end well -> nothing unfinished of it is left.

    Of a job of an earlier version, which does not tell its attempt, only what is a day old.
    """
    for path in facts.staging:
        root = path.removesuffix(f"/.staging/{facts.run_id}")
        folder = RunFolder(root, facts.run_id, facts.attempt or "unknown")
        discard(folder)
        discard_dead(folder)


def describe_pipeline(pipeline: beam.Pipeline, facts: JobFacts) -> str:
    """A pipeline that is not started -> what it would be, in some lines. Secrets are left out."""
    options = pipeline.options
    carried, own = facts.options(), {"dry_run", "labels", *facts.options()}
    given = options.get_all_options(drop_default=True, retain_unknown_options=True)
    labels = options.view_as(GoogleCloudOptions).labels or ()
    shown = {n: v for n, v in sorted(given.items()) if n not in own and not is_secret(n)}
    lines = [
        ("dry run", "nothing was made or started; sinks were not looked at"),
        *((name.removeprefix(PREFIX), _text(value)) for name, value in carried.items()),
        *(("label", label) for label in labels),
        *(("option", f"--{name} {_text(value)}") for name, value in shown.items()),
        *(("step", name) for name in _steps(pipeline)),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _text(value: Any) -> str:
    return without_secrets(" ".join(map(str, value)) if isinstance(value, list) else str(value))


def _steps(pipeline: beam.Pipeline) -> list[str]:
    """A pipeline -> the steps of its graph, in their order."""
    proto = pipeline.to_runner_api()
    transforms = proto.components.transforms
    graphs = transforms[proto.root_transform_ids[0]].subtransforms
    return [
        transforms[part].unique_name for graph in graphs for part in transforms[graph].subtransforms
    ]
