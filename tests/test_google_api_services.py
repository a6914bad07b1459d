"""The other services of the stand-in, called with Google's own clients."""

from collections.abc import Iterator
from typing import Any

import googleapiclient.discovery
import pytest
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import dataflow_v1beta3 as dataflow
from google.cloud import resourcemanager_v3
from google.iam.v1 import iam_policy_pb2, policy_pb2
from googleapiclient.errors import HttpError

from examples.google_api.access import IAM, ResourceManager
from examples.google_api.dataflow import Dataflow
from examples.google_api.server import GoogleApi, google_api
from examples.google_api.service_usage import ServiceUsage
from examples.google_api.vertex import VertexAI

PROJECT, REGION = "a-project", "us-central1"
EMAIL = f"scoring@{PROJECT}.iam.gserviceaccount.com"


@pytest.fixture
def google() -> Iterator[GoogleApi]:
    """All services at one address, since no path belongs to two of them."""
    iam = IAM()
    services = (
        VertexAI(),
        ServiceUsage("pubsub.googleapis.com"),
        iam,
        ResourceManager(PROJECT, granted=["pubsub.topics.create"], accounts=iam),
        Dataflow(),
    )
    with google_api(*services) as google:
        yield google


def client(google: GoogleApi, kind: Any) -> Any:
    """Return a client of Google's library for the server, over REST."""
    transport = kind.get_transport_class("rest")
    return kind(transport=transport(host=google.url, credentials=AnonymousCredentials()))


def discovered(google: GoogleApi, name: str) -> Any:
    """Return a client built from the document of a service that has no client library."""
    return googleapiclient.discovery.build(
        name,
        "v1",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": google.url},
        static_discovery=True,
    )


def test_apis_are_enabled_after_the_operation_has_ended(google: GoogleApi) -> None:
    usage = discovered(google, "serviceusage")
    parent, name = f"projects/{PROJECT}", "dataflow.googleapis.com"
    found = usage.services().list(parent=parent, filter="state:ENABLED").execute()
    assert [service["config"]["name"] for service in found["services"]] == ["pubsub.googleapis.com"]
    operation = usage.services().batchEnable(parent=parent, body={"serviceIds": [name]}).execute()
    one = usage.services().get(name=f"{parent}/services/{name}")
    assert (operation["done"], one.execute()["state"]) == (False, "DISABLED")
    assert usage.operations().get(name=operation["name"]).execute()["done"]
    assert one.execute()["state"] == "ENABLED"
    with pytest.raises(HttpError, match="Not found or permission denied"):
        usage.services().batchEnable(parent=parent, body={"serviceIds": ["no.such"]}).execute()


def test_service_accounts_are_created_found_and_deleted(google: GoogleApi) -> None:
    accounts = discovered(google, "iam").projects().serviceAccounts()
    body = {"accountId": "scoring", "serviceAccount": {"displayName": "Scoring"}}
    created = accounts.create(name=f"projects/{PROJECT}", body=body).execute()
    assert (created["email"], created["displayName"]) == (EMAIL, "Scoring")
    with pytest.raises(HttpError, match="already exists"):
        accounts.create(name=f"projects/{PROJECT}", body=body).execute()
    name = f"projects/-/serviceAccounts/{EMAIL}"
    assert accounts.get(name=name).execute() == created
    assert accounts.list(name=f"projects/{PROJECT}").execute() == {"accounts": [created]}
    policy = accounts.getIamPolicy(resource=created["name"]).execute()
    policy["bindings"] = [{"role": "roles/iam.serviceAccountUser", "members": ["user:a@b.example"]}]
    kept = accounts.setIamPolicy(resource=created["name"], body={"policy": policy}).execute()
    assert kept["bindings"] == policy["bindings"]
    accounts.delete(name=name).execute()
    with pytest.raises(HttpError, match="not found"):
        accounts.get(name=name).execute()


def test_a_policy_that_has_changed_since_it_was_read_is_not_overwritten(google: GoogleApi) -> None:
    projects = client(google, resourcemanager_v3.ProjectsClient)
    project = projects.get_project(name=f"projects/{PROJECT}")
    assert (project.project_id, project.state.name) == (PROJECT, "ACTIVE")
    resource = f"projects/{PROJECT}"
    policy = projects.get_iam_policy(resource=resource)
    policy.bindings.append(policy_pb2.Binding(role="roles/viewer", members=["user:a@b.example"]))
    request = iam_policy_pb2.SetIamPolicyRequest(resource=resource, policy=policy)
    kept = projects.set_iam_policy(request=request)
    assert kept.etag != policy.etag
    assert projects.get_iam_policy(resource=project.name) == kept
    with pytest.raises(exceptions.Conflict, match="concurrent policy changes"):
        projects.set_iam_policy(request=request)
    kept.bindings[0].members.append(f"serviceAccount:{EMAIL}")
    request = iam_policy_pb2.SetIamPolicyRequest(resource=resource, policy=kept)
    with pytest.raises(exceptions.BadRequest, match="does not exist"):
        projects.set_iam_policy(request=request)


def test_unknown_projects_are_refused_and_missing_permissions_are_left_out(
    google: GoogleApi,
) -> None:
    projects = client(google, resourcemanager_v3.ProjectsClient)
    with pytest.raises(exceptions.Forbidden, match=r"'resourcemanager\.projects\.get' denied"):
        projects.get_project(name="projects/another")
    asked = ["pubsub.topics.create", "storage.buckets.create"]
    answer = projects.test_iam_permissions(resource=f"projects/{PROJECT}", permissions=asked)
    assert list(answer.permissions) == ["pubsub.topics.create"]


def get(google: GoogleApi, job_id: str) -> dataflow.Job:
    request = dataflow.GetJobRequest(project_id=PROJECT, location=REGION, job_id=job_id)
    return client(google, dataflow.JobsV1Beta3Client).get_job(request=request)


def ask_for(google: GoogleApi, job_id: str, state: dataflow.JobState) -> dataflow.Job:
    job = dataflow.Job(requested_state=state)
    request = dataflow.UpdateJobRequest(project_id=PROJECT, location=REGION, job_id=job_id, job=job)
    return client(google, dataflow.JobsV1Beta3Client).update_job(request=request)


def launch(google: GoogleApi, name: str, **fields: Any) -> dataflow.Job:
    parameter = dataflow.LaunchFlexTemplateParameter(
        job_name=name, container_spec_gcs_path="gs://b/t.json", **fields
    )
    request = dataflow.LaunchFlexTemplateRequest(
        project_id=PROJECT, location=REGION, launch_parameter=parameter
    )
    return client(google, dataflow.FlexTemplatesServiceClient).launch_flex_template(request).job


def states(google: GoogleApi, job_id: str, looks: int) -> list[str]:
    found = [get(google, job_id).current_state.name for _ in range(looks)]
    return [state.removeprefix("JOB_STATE_") for state in found]


def test_a_batch_job_runs_to_its_end_and_reports_its_states(google: GoogleApi) -> None:
    job = launch(google, "batch-1")
    assert states(google, job.id, 5) == ["PENDING", "RUNNING", "RUNNING", "DONE", "DONE"]
    request = dataflow.ListJobMessagesRequest(
        project_id=PROJECT,
        location=REGION,
        job_id=job.id,
        minimum_importance=dataflow.JobMessageImportance.JOB_MESSAGE_BASIC,
    )
    listed = client(google, dataflow.MessagesV1Beta3Client).list_job_messages(request=request)
    assert [m.message_text for m in listed] == [
        "The job is pending.",
        "The job is running.",
        "The job is done.",
    ]
    with pytest.raises(exceptions.BadRequest, match="terminal state DONE"):
        ask_for(google, job.id, dataflow.JobState.JOB_STATE_CANCELLED)


def test_a_streaming_job_runs_until_it_is_drained_or_cancelled(google: GoogleApi) -> None:
    job = launch(google, "streaming-1")
    assert states(google, job.id, 4) == ["PENDING", "RUNNING", "RUNNING", "RUNNING"]
    with pytest.raises(exceptions.Conflict, match="already an active job"):
        launch(google, "streaming-1")
    drained = ask_for(google, job.id, dataflow.JobState.JOB_STATE_DRAINED)
    assert drained.current_state == dataflow.JobState.JOB_STATE_DRAINING
    assert states(google, job.id, 2) == ["DRAINING", "DRAINED"]
    other = launch(google, "batch-1")
    with pytest.raises(exceptions.BadRequest, match="cannot be drained"):
        ask_for(google, other.id, dataflow.JobState.JOB_STATE_DRAINED)
    ask_for(google, other.id, dataflow.JobState.JOB_STATE_CANCELLED)
    assert states(google, other.id, 2) == ["CANCELLING", "CANCELLED"]


def test_an_update_replaces_the_running_job(google: GoogleApi) -> None:
    old = launch(google, "streaming-1")
    new = launch(google, "streaming-1", update=True)
    assert states(google, old.id, 1) == ["UPDATED"]
    assert get(google, old.id).replaced_by_job_id == new.id
    with pytest.raises(exceptions.BadRequest, match="no active job named other"):
        launch(google, "other", update=True)


def test_jobs_are_listed_by_region_and_state(google: GoogleApi) -> None:
    service = google.services[-1]
    assert isinstance(service, Dataflow)
    created = "2026-08-22T00:00:00Z"
    fields = {"type": "JOB_TYPE_STREAMING", "currentState": "JOB_STATE_RUNNING"}
    service.add("forgotten", PROJECT, "europe-west4", createTime=created, **fields)
    service.add("done", PROJECT, REGION, currentState="JOB_STATE_DONE")
    service.add("foreign", "another", REGION, **fields)
    launch(google, "streaming-1")
    jobs = client(google, dataflow.JobsV1Beta3Client)

    def names(kind: str, location: str | None = REGION) -> list[str]:
        chosen = dataflow.ListJobsRequest.Filter[kind]
        request = dataflow.ListJobsRequest(
            project_id=PROJECT, location=location or "", filter=chosen
        )
        find = jobs.list_jobs if location else jobs.aggregated_list_jobs
        return [job.name for job in find(request=request)]

    assert names("ALL") == ["done", "streaming-1"]
    assert names("ACTIVE") == ["streaming-1"]
    assert names("TERMINATED") == ["done"]
    assert names("ACTIVE", None) == ["forgotten", "streaming-1"]


def test_metrics_are_the_ones_that_a_test_has_set(google: GoogleApi) -> None:
    service = google.services[-1]
    assert isinstance(service, Dataflow)
    job = service.add("batch-1", PROJECT, REGION)
    name = {"origin": "user", "name": "rows_inferred", "context": {"step": "Predict"}}
    service.metrics[job["id"]] = [{"name": name, "scalar": 2000}]
    request = dataflow.GetJobMetricsRequest(project_id=PROJECT, location=REGION, job_id=job["id"])
    (found,) = client(google, dataflow.MetricsV1Beta3Client).get_job_metrics(request).metrics
    assert (found.name.name, found.scalar) == ("rows_inferred", 2000)
    assert dict(found.name.context) == {"step": "Predict"}
