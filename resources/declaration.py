"""Declares every resource that the pipelines need, derived from the configuration.

`plan`, `setup`, `status` and `cleanup` all work from this one list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace

import pyarrow as pa

from cloud.owner import QUERY_DATASETS
from model_handlers.manifests.manifest import Manifest
from resources.config import PIPELINES, Config
from transforms.bigquery.schema import table_fields, type_name
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.row_schemas import REFERENCE_SCHEMA, REFERENCE_STREAM_SCHEMA, default_schema

# The key of a configuration's label is this prefix followed by the configuration's name. A resource
# that several configurations share carries one label for each.
CONFIG_LABEL, IN_USE = "millrace_config_", "used"
# The names of properties that stand for labels start with this.
LABEL = "label "
# The kinds that setup labels. Accounts cannot have labels, so setup writes the same into their
# description.
LABELLED = ("account", "bucket", "dataset", "table", "topic", "subscription")
ACKNOWLEDGE_SECONDS = 60

BATCH, STREAM = ("batch_local", "batch_vertex"), ("stream_local", "stream_vertex")
VERTEX = ("batch_vertex", "stream_vertex")

SERVICES = {
    "artifactregistry.googleapis.com": PIPELINES,
    "bigquery.googleapis.com": PIPELINES,
    "bigquerystorage.googleapis.com": PIPELINES,
    "cloudresourcemanager.googleapis.com": PIPELINES,
    "compute.googleapis.com": PIPELINES,
    "dataflow.googleapis.com": PIPELINES,
    "iam.googleapis.com": PIPELINES,
    "logging.googleapis.com": PIPELINES,
    "monitoring.googleapis.com": PIPELINES,
    "storage.googleapis.com": PIPELINES,
    "aiplatform.googleapis.com": VERTEX,
    "pubsub.googleapis.com": STREAM,
}
# The smallest of Google's roles that have the permissions of a worker.
ROLES = {
    "roles/dataflow.worker": PIPELINES,
    "roles/artifactregistry.reader": PIPELINES,
    "roles/storage.objectUser": PIPELINES,
    "roles/bigquery.dataEditor": PIPELINES,
    "roles/bigquery.jobUser": PIPELINES,
    "roles/bigquery.readSessionUser": BATCH,
    "roles/pubsub.subscriber": STREAM,
    "roles/pubsub.viewer": STREAM,
    "roles/pubsub.publisher": STREAM,
    "roles/aiplatform.user": VERTEX,
}


@dataclass(frozen=True)
class Resource:
    """A declared resource.

    Attributes:
        kind: A key of `KINDS`.
        name: The name in Google Cloud, unique within the kind.
        properties: The expected properties, as text.
        needs: Kinds and names of the resources that must exist first.
        pipelines: The pipelines that need it.
        on_demand: Whether setup leaves it out unless the user requests it.
    """

    kind: str
    name: str
    _: KW_ONLY
    properties: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[tuple[str, str], ...] = ()
    pipelines: tuple[str, ...] = PIPELINES
    on_demand: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """The kind and the name."""
        return self.kind, self.name

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def declare(
    config: Config,
    *,
    example_rows: int | None = None,
    model_digest: str | None = None,
    manifest: Manifest | None = None,
) -> list[Resource]:
    """Return the resources of a configuration, each after the resources that it needs.

    Args:
        config: The configuration.
        example_rows: The number of example rows for the source table, None to leave it alone.
        model_digest: The digest of the package that becomes the current model, None to leave the
            model out.
        manifest: The manifest of that package. Result tables of the default schema have its
            columns. Without it, setup leaves them to the first run.
    """
    chosen = set(config.pipelines)
    label = {f"{LABEL}{config_label(config.name)}": IN_USE}
    return [
        replace(resource, properties={**resource.properties, **label})
        if resource.kind in LABELLED
        else resource
        for resource in _all(config, example_rows, model_digest, manifest)
        if chosen.intersection(resource.pipelines)
    ]


def config_label(name: str) -> str:
    """Return the key of the label that marks what a configuration uses."""
    return f"{CONFIG_LABEL}{name}"


def _all(
    config: Config,
    example_rows: int | None,
    model_digest: str | None,
    manifest: Manifest | None,
) -> Iterator[Resource]:
    for service, pipelines in SERVICES.items():
        yield Resource("service", service, pipelines=pipelines)
    email = f"{config.service_account}@{_account_domain(config.project)}"
    account = Resource("account", email, needs=(("service", "iam.googleapis.com"),))
    yield account
    policies = ("service", "cloudresourcemanager.googleapis.com")
    for role, pipelines in ROLES.items():
        yield Resource(
            "role",
            role,
            properties={"member": email},
            needs=(account.key, policies),
            pipelines=pipelines,
        )
    place = {"location": config.location.lower()}
    yield Resource(
        "bucket", config.bucket, properties=place, needs=(("service", "storage.googleapis.com"),)
    )
    yield from _files(config, model_digest)
    yield from _datasets(config, example_rows, manifest)
    yield from _messages(config)
    model = f"projects/{config.project}/locations/{config.region}/models/{config.prefix}"
    vertex = (("service", "aiplatform.googleapis.com"),)
    yield Resource(
        "registry_model", model, properties={}, needs=vertex, pipelines=VERTEX, on_demand=True
    )


def _account_domain(project: str) -> str:
    """Return what follows the @ in the names of a project's service accounts.

    For a domain-scoped project `DOMAIN:NAME`, that is `NAME.DOMAIN.iam.gserviceaccount.com`.
    """
    domain, _, name = project.rpartition(":")
    return ".".join(filter(None, (name, domain, "iam.gserviceaccount.com")))


def _files(config: Config, model_digest: str | None) -> Iterator[Resource]:
    bucket = (("bucket", config.bucket),)
    folder = f"gs://{config.bucket}/{config.folder}/"
    if model_digest is not None:
        yield Resource(
            "model", f"{folder}current.json", properties={"digest": model_digest}, needs=bucket
        )
    yield Resource("files", folder, properties={}, needs=bucket, on_demand=True)


def _datasets(
    config: Config, example_rows: int | None, manifest: Manifest | None
) -> Iterator[Resource]:
    """Yield the dataset and its tables, and the datasets that runs create for query results."""
    name = f"{config.project}.{config.dataset}"
    place, needs = {"location": config.location.lower()}, (("service", "bigquery.googleapis.com"),)
    dataset = Resource("dataset", name, properties=place, needs=needs)
    yield dataset
    yield from _results(config, dataset, manifest)
    rows = {} if example_rows is None else {"example rows": str(example_rows)}
    yield Resource(
        "table",
        f"{name}.{config.source_table}",
        properties=rows,
        needs=(dataset.key,),
        on_demand=example_rows is None,
    )
    queries = f"{config.project}.{QUERY_DATASETS}*"
    yield Resource("query_dataset", queries, needs=needs, pipelines=BATCH, on_demand=True)


def _results(config: Config, dataset: Resource, manifest: Manifest | None) -> Iterator[Resource]:
    """Yield the tables of results and of dead letters. Pipelines may share them."""
    schemas: dict[str, pa.Schema | None] = {}
    pipelines: dict[str, tuple[str, ...]] = {}

    def add(name: str, schema: pa.Schema | None, pipeline: str) -> None:
        schemas[name] = schema
        pipelines[name] = (*pipelines.get(name, ()), pipeline)

    for pipeline in PIPELINES:
        name = config.table_of(pipeline)
        add(name, _schema(config, manifest, pipeline), pipeline)
        # The pipelines use this name by default.
        add(f"{name}_dead_letters", FAILURE_SCHEMA, pipeline)
    if config.output_schema == "reference":
        keyed = REFERENCE_STREAM_SCHEMA.append(pa.field("model_id", pa.string()))
        stem = config.prefix.replace("-", "_")
        add(f"{stem}_streaming_results_keyed", keyed, "stream_local")
    for name, schema in schemas.items():
        properties = {} if schema is None else {"type": "TABLE", **columns(schema)}
        yield Resource(
            "table",
            f"{dataset.name}.{name}",
            properties=properties,
            needs=(dataset.key,),
            pipelines=pipelines[name],
            on_demand=schema is None,
        )


def _schema(config: Config, manifest: Manifest | None, pipeline: str) -> pa.Schema | None:
    """Return the schema of a pipeline's results, None if the model is not known."""
    if config.output_schema == "reference":
        return REFERENCE_STREAM_SCHEMA if pipeline in STREAM else REFERENCE_SCHEMA
    return None if manifest is None else default_schema(manifest, stream=pipeline in STREAM)


def columns(schema: pa.Schema) -> dict[str, str]:
    """Return a property for each column of the table that holds rows of a schema."""
    return {f"column {f.name}": shown(type_name(f), f.mode) for f in table_fields(schema)}


def shown(name: str, mode: str | None) -> str:
    """Return a column's type and mode as one text, without the mode if it is NULLABLE."""
    return name if mode in ("NULLABLE", "", None) else f"{mode} {name}"


def _messages(config: Config) -> Iterator[Resource]:
    for where in ("local", "vertex"):
        for what in ("input", "output", "dead-letters"):
            yield from _channel(config, f"{what}-{where}", f"{what}-sub-{where}", f"stream_{where}")
    yield from _channel(config, "model-update", "model-update-sub", "stream_local")


def _channel(config: Config, topic: str, subscription: str, pipeline: str) -> Iterator[Resource]:
    """Yield a topic and its subscription."""
    service = (("service", "pubsub.googleapis.com"),)
    name = f"projects/{config.project}/topics/{config.prefix}-{topic}"
    yield Resource("topic", name, properties={}, needs=service, pipelines=(pipeline,))
    # The pipelines refuse a subscription that may expire, or one with a dead letter policy, which
    # takes messages away from them.
    properties = {
        "topic": name,
        "acknowledge deadline": f"{ACKNOWLEDGE_SECONDS} s",
        "expiration": "later than its messages",
        "dead letter policy": "none",
    }
    yield Resource(
        "subscription",
        f"projects/{config.project}/subscriptions/{config.prefix}-{subscription}",
        properties=properties,
        needs=(*service, ("topic", name)),
        pipelines=(pipeline,),
    )
