"""What belongs to the project itself: enabled APIs, the workers' account and its roles."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from google.api_core import exceptions

from cloud.discovered import execute, execute_once
from cloud.errors import retry
from cloud.owner import OWNER
from common.errors import OutputError
from resources.declaration import IN_USE, Resource, config_label
from resources.kinds.base import Found, Kind, configs_of, merged_labels

# Accounts have no labels.
_MARK, _FOR = "created by millrace", " for "
_POLL_SECONDS = 1.0
# The version of policies that have conditions, which would be lost by asking for less.
_POLICY_VERSION = 3


class Services(Kind):
    """APIs. They are enabled, and never disabled: others may use them."""

    role: ClassVar = "roles/serviceusage.serviceUsageAdmin"

    @functools.cached_property
    def client(self) -> Any:
        """One for all resources of the kind."""
        return self.cloud.discovered("serviceusage", "v1")

    def look(self, resource: Resource) -> Found | None:
        """That it is enabled."""
        request = self.client.services().get(name=self._name(resource))
        state = execute(request, self.cloud.retry_seconds).get("state")
        return Found(ours=False) if state == "ENABLED" else None

    def create(self, resource: Resource) -> None:
        """Enabled, waited for."""
        seconds = self.cloud.retry_seconds
        parent, body = f"projects/{self.cloud.project}", {"serviceIds": [resource.name]}
        operation = execute(self.client.services().batchEnable(parent=parent, body=body), seconds)
        while not operation.get("done"):
            time.sleep(_POLL_SECONDS)
            operation = execute(self.client.operations().get(name=operation["name"]), seconds)
        if "error" in operation:
            message = operation["error"].get("message", "for no reason that is told")
            raise OutputError(f"{resource} cannot be enabled: {message}")

    def delete(self, resource: Resource) -> None:
        """Never."""
        raise NotImplementedError

    def _name(self, resource: Resource) -> str:
        return f"projects/{self.cloud.project}/services/{resource.name}"


class Accounts(Kind):
    """The service account that workers run as."""

    role: ClassVar = "roles/iam.serviceAccountAdmin"

    @functools.cached_property
    def client(self) -> Any:
        """One for all resources of the kind."""
        return self.cloud.discovered("iam", "v1").projects().serviceAccounts()

    def look(self, resource: Resource) -> Found | None:
        """Whose it is."""
        try:
            return Found.labelled(self._labels(resource), {})
        except exceptions.NotFound:
            return None

    def create(self, resource: Resource) -> None:
        """With a description that says who made it."""
        account = {"displayName": "Millrace's workers", "description": _described(self.labels)}
        body = {"accountId": resource.name.partition("@")[0], "serviceAccount": account}
        request = self.client.create(name=f"projects/{self.cloud.project}", body=body)
        execute(request, self.cloud.retry_seconds)

    def relabel(self, resource: Resource, labels: Mapping[str, str | None]) -> None:
        """Its description names the configurations."""
        text = _described(merged_labels(self._labels(resource), labels))
        body = {"serviceAccount": {"description": text}, "updateMask": "description"}
        request = self.client.patch(name=self._name(resource), body=body)
        execute(request, self.cloud.retry_seconds)

    def _labels(self, resource: Resource) -> dict[str, str]:
        """The account -> what labels would say. Accounts have none, but a description."""
        request = self.client.get(name=self._name(resource))
        text = execute(request, self.cloud.retry_seconds).get("description", "")
        if not text.startswith(_MARK):
            return {}
        names = text.removeprefix(_MARK).removeprefix(_FOR).split(", ")
        return {**OWNER, **{config_label(name): IN_USE for name in names if name}}

    def delete(self, resource: Resource) -> None:
        """The account."""
        execute(self.client.delete(name=self._name(resource)), self.cloud.retry_seconds)

    def _name(self, resource: Resource) -> str:
        return f"projects/{self.cloud.project}/serviceAccounts/{resource.name}"


class Roles(Kind):
    """Roles of the workers' account in the project: all else of the policy stays as it is."""

    role: ClassVar = "roles/resourcemanager.projectIamAdmin"

    @functools.cached_property
    def client(self) -> Any:
        """One for all resources of the kind."""
        return self.cloud.discovered("cloudresourcemanager", "v3").projects()

    def look(self, resource: Resource) -> Found | None:
        """Whether the account has it, without a condition."""
        member = _member(resource)
        has = any(
            b["role"] == resource.name and member in b["members"] and "condition" not in b
            for b in self._policy().get("bindings", [])
        )
        return Found(properties={"member": resource.properties["member"]}) if has else None

    def create(self, resource: Resource) -> None:
        """Granted."""

        def grant(bindings: list[dict[str, Any]]) -> None:
            member = _member(resource)
            for binding in _plain(bindings, resource.name):
                binding["members"] = sorted({*binding["members"], member})
                return
            bindings.append({"role": resource.name, "members": [member]})

        self._change(grant)

    def delete(self, resource: Resource) -> None:
        """Taken back."""

        def take(bindings: list[dict[str, Any]]) -> None:
            for binding in _plain(bindings, resource.name):
                binding["members"] = [m for m in binding["members"] if m != _member(resource)]
                if not binding["members"]:
                    bindings.remove(binding)

        self._change(take)

    @property
    def _project(self) -> str:
        return f"projects/{self.cloud.project}"

    def _policy(self) -> dict[str, Any]:
        options = {"options": {"requestedPolicyVersion": _POLICY_VERSION}}
        request = self.client.getIamPolicy(resource=self._project, body=options)
        return execute(request, self.cloud.retry_seconds)

    def _change(self, change: Callable[[list[dict[str, Any]]], None]) -> None:
        """Reads, changes and writes the policy; its etag tells if somebody wrote meanwhile."""

        def once() -> None:
            policy = self._policy()
            bindings = policy.setdefault("bindings", [])
            change(bindings)
            policy["version"] = _POLICY_VERSION
            request = self.client.setIamPolicy(resource=self._project, body={"policy": policy})
            try:
                execute_once(request)
            except exceptions.BadRequest as error:
                # An account is known to the policy some seconds after it was made.
                if "does not exist" in str(error):
                    raise exceptions.ServiceUnavailable(str(error)) from error
                raise

        retry(self.cloud.retry_seconds, exceptions.Conflict)(once)()


def _described(labels: Mapping[str, str]) -> str:
    """Labels -> the description that says the same."""
    names = ", ".join(sorted(configs_of(labels)))
    return f"{_MARK}{_FOR}{names}" if names else _MARK


def _member(resource: Resource) -> str:
    return f"serviceAccount:{resource.properties['member']}"


def _plain(bindings: list[dict[str, Any]], role: str) -> list[dict[str, Any]]:
    """A policy's bindings -> those of a role that have no condition."""
    return [b for b in bindings if b["role"] == role and "condition" not in b]
