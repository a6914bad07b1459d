"""The enabled APIs of a project, the account of its workers, and the roles of the account."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from google.api_core import exceptions

from cloud.discovered import execute, execute_once
from cloud.errors import retry
from cloud.owner import OWNER
from common.errors import ResourceError
from resources.declaration import IN_USE, Resource, config_label
from resources.kinds.base import Found, Kind, configs_of, merged_labels

# Accounts cannot have labels, so their description says who created and uses them.
_MARK, _FOR = "created by millrace", " for "
_POLL_SECONDS = 1.0
# Policies of this version may have conditions. A request for a lower version would lose them.
_POLICY_VERSION = 3


class Services(Kind):
    """APIs. They are never disabled, because others may use them."""

    role: ClassVar = "roles/serviceusage.serviceUsageAdmin"

    @functools.cached_property
    def client(self) -> Any:
        """The client of all resources of the kind."""
        return self.cloud.discovered("serviceusage", "v1")

    def look(self, resource: Resource) -> Found | None:
        """Return the API if it is enabled, else None."""
        request = self.client.services().get(name=self._name(resource))
        state = execute(request, self.cloud.retry_seconds).get("state")
        return Found(ours=False) if state == "ENABLED" else None

    def create(self, resource: Resource) -> None:
        """Enable the API and wait until it is enabled."""
        seconds = self.cloud.retry_seconds
        parent, body = f"projects/{self.cloud.project}", {"serviceIds": [resource.name]}
        operation = execute(self.client.services().batchEnable(parent=parent, body=body), seconds)
        while not operation.get("done"):
            time.sleep(_POLL_SECONDS)
            operation = execute(self.client.operations().get(name=operation["name"]), seconds)
        if "error" in operation:
            message = operation["error"].get("message", "Google gave no reason")
            raise ResourceError(f"cannot enable {resource}: {message}")

    def delete(self, resource: Resource) -> None:
        """Raise NotImplementedError, because APIs stay enabled."""
        raise NotImplementedError

    def _name(self, resource: Resource) -> str:
        return f"projects/{self.cloud.project}/services/{resource.name}"


class Accounts(Kind):
    """The service account that workers run as."""

    role: ClassVar = "roles/iam.serviceAccountAdmin"

    @functools.cached_property
    def client(self) -> Any:
        """The client of all resources of the kind."""
        return self.cloud.discovered("iam", "v1").projects().serviceAccounts()

    def look(self, resource: Resource) -> Found | None:
        """Return the account with its owner and configurations, None if it does not exist."""
        try:
            return Found.labelled(self._labels(resource), {})
        except exceptions.NotFound:
            return None

    def create(self, resource: Resource) -> None:
        """Create the account with a description that says who created it."""
        account = {"displayName": "Millrace's workers", "description": _described(self.labels)}
        body = {"accountId": resource.name.partition("@")[0], "serviceAccount": account}
        request = self.client.create(name=f"projects/{self.cloud.project}", body=body)
        execute(request, self.cloud.retry_seconds)

    def relabel(self, resource: Resource, labels: Mapping[str, str | None]) -> None:
        """Name the configurations in the description."""
        text = _described(merged_labels(self._labels(resource), labels))
        body = {"serviceAccount": {"description": text}, "updateMask": "description"}
        request = self.client.patch(name=self._name(resource), body=body)
        execute(request, self.cloud.retry_seconds)

    def _labels(self, resource: Resource) -> dict[str, str]:
        """Return the labels that the description stands for."""
        request = self.client.get(name=self._name(resource))
        text = execute(request, self.cloud.retry_seconds).get("description", "")
        if not text.startswith(_MARK):
            return {}
        names = text.removeprefix(_MARK).removeprefix(_FOR).split(", ")
        return {**OWNER, **{config_label(name): IN_USE for name in names if name}}

    def delete(self, resource: Resource) -> None:
        """Delete the account."""
        execute(self.client.delete(name=self._name(resource)), self.cloud.retry_seconds)

    def _name(self, resource: Resource) -> str:
        return f"projects/{self.cloud.project}/serviceAccounts/{resource.name}"


class Roles(Kind):
    """Roles of the workers' account in the project. Other entries of the policy are kept."""

    role: ClassVar = "roles/resourcemanager.projectIamAdmin"

    @functools.cached_property
    def client(self) -> Any:
        """The client of all resources of the kind."""
        return self.cloud.discovered("cloudresourcemanager", "v3").projects()

    def look(self, resource: Resource) -> Found | None:
        """Return the role if the account has it without a condition, else None."""
        member = _member(resource)
        has = any(
            b["role"] == resource.name and member in b["members"] and "condition" not in b
            for b in self._policy().get("bindings", [])
        )
        return Found(properties={"member": resource.properties["member"]}) if has else None

    def create(self, resource: Resource) -> None:
        """Grant the role to the account."""

        def grant(bindings: list[dict[str, Any]]) -> None:
            member = _member(resource)
            for binding in _plain(bindings, resource.name):
                binding["members"] = sorted({*binding["members"], member})
                return
            bindings.append({"role": resource.name, "members": [member]})

        self._change(grant)

    def delete(self, resource: Resource) -> None:
        """Revoke the role from the account."""

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
        """Read, change and write the policy. The etag in it detects a concurrent change."""

        def once() -> None:
            policy = self._policy()
            bindings = policy.setdefault("bindings", [])
            change(bindings)
            policy["version"] = _POLICY_VERSION
            request = self.client.setIamPolicy(resource=self._project, body={"policy": policy})
            try:
                execute_once(request)
            except exceptions.BadRequest as error:
                # The policy accepts a new account only some seconds after its creation.
                if "does not exist" in str(error):
                    raise exceptions.ServiceUnavailable(str(error)) from error
                raise

        retry(self.cloud.retry_seconds, exceptions.Conflict)(once)()


def _described(labels: Mapping[str, str]) -> str:
    """Return the description that stands for the labels."""
    names = ", ".join(sorted(configs_of(labels)))
    return f"{_MARK}{_FOR}{names}" if names else _MARK


def _member(resource: Resource) -> str:
    return f"serviceAccount:{resource.properties['member']}"


def _plain(bindings: list[dict[str, Any]], role: str) -> list[dict[str, Any]]:
    """Return the bindings of a role that have no condition."""
    return [b for b in bindings if b["role"] == role and "condition" not in b]
