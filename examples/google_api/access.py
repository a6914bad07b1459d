"""Stand-ins for IAM and the Resource Manager: service accounts, projects and their policies."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection
from typing import Any

from examples.google_api.faults import Call, Refusal, permission_denied
from examples.google_api.server import Service
from examples.google_api.store import listed, patched

_ACCOUNT_ID = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]")


class _Policies(Service):
    """The policies of resources; a write is refused if the policy has changed since it was read."""

    def __init__(self) -> None:
        super().__init__()
        self._policies: dict[str, dict[str, Any]] = {}

    def policy(self, resource: str) -> dict[str, Any]:
        """Return the policy of a resource."""
        return self._policies.setdefault(resource, {"version": 1, "etag": self._etag()})

    def set_policy(self, resource: str, policy: dict[str, Any]) -> dict[str, Any]:
        """Replace the policy of a resource, and return the stored policy.

        Args:
            resource: The name of the resource.
            policy: The new policy, with the etag of the policy that was read.

        Raises:
            Refusal: If the policy has changed since it was read.
        """
        if policy.get("etag", self.policy(resource)["etag"]) != self.policy(resource)["etag"]:
            message = (
                "There were concurrent policy changes. Please retry the whole read-modify-write "
                "with exponential backoff."
            )
            raise Refusal(409, message, "ABORTED")
        self._policies[resource] = {"version": 1, **policy, "etag": self._etag()}
        return self._policies[resource]

    def _etag(self) -> str:
        return base64.b64encode(f"etag {self.number()}".encode()).decode()


class IAM(_Policies):
    """The stand-in for IAM: service accounts and their policies."""

    document = "iam.v1"

    def service_accounts_create(self, call: Call) -> dict[str, Any]:
        """Create a service account."""
        project, ident = call.name.removeprefix("projects/"), call.body.get("accountId", "")
        if not _ACCOUNT_ID.fullmatch(ident):
            raise Refusal(400, f"{ident!r} is not an id of a service account.")
        email = f"{ident}@{project}.iam.gserviceaccount.com"
        name = f"projects/{project}/serviceAccounts/{email}"
        fixed = {"name": name, "projectId": project, "email": email, "uniqueId": str(self.number())}
        return self.store.create(name, call.body.get("serviceAccount", {}) | fixed)

    def service_accounts_get(self, call: Call) -> dict[str, Any]:
        """Return a service account; the project in its name may be `-`."""
        return self.store.get(_full(call.name))

    def service_accounts_list(self, call: Call) -> dict[str, Any]:
        """List the service accounts of a project."""
        return listed(call, "accounts", self.store.under(f"{call.values['name']}/serviceAccounts"))

    def service_accounts_patch(self, call: Call) -> dict[str, Any]:
        """Change the fields that the update mask names."""
        account = self.store.get(_full(call.name))
        patched(account, call.body["serviceAccount"], call.body["updateMask"])
        return account

    def service_accounts_delete(self, call: Call) -> dict[str, Any]:
        """Delete a service account."""
        self.store.delete(_full(call.name))
        return {}

    def service_accounts_get_iam_policy(self, call: Call) -> dict[str, Any]:
        """Return the policy of a service account."""
        self.store.get(_full(call.name))
        return self.policy(_full(call.name))

    def service_accounts_set_iam_policy(self, call: Call) -> dict[str, Any]:
        """Replace the policy of a service account."""
        self.store.get(_full(call.name))
        return self.set_policy(_full(call.name), call.body["policy"])

    def emails(self) -> set[str]:
        """Return the email addresses of all service accounts."""
        return {account["email"] for account in self.store.all()}


def _full(name: str) -> str:
    """Return a name with the project of the account's email in place of `-`."""
    email = name.rpartition("/")[2]
    project = email.partition("@")[2].removesuffix(".iam.gserviceaccount.com")
    return name.replace("projects/-/", f"projects/{project}/")


class ResourceManager(_Policies):
    """The stand-in for the Resource Manager: projects and their policies.

    Args:
        projects: The ids of the projects.
        granted: The permissions of the caller; None grants all of them.
        accounts: The service accounts that a policy may name, as with Google; None allows any.
    """

    document = "cloudresourcemanager.v3"

    def __init__(
        self, *projects: str, granted: Collection[str] | None = None, accounts: IAM | None = None
    ) -> None:
        super().__init__()
        self.granted, self._accounts = granted, accounts
        self._projects = {
            project: {
                "name": f"projects/{10**11 + number}",
                "projectId": project,
                "displayName": project,
                "state": "ACTIVE",
            }
            for number, project in enumerate(projects)
        }

    def projects_get(self, call: Call) -> dict[str, Any]:
        """Return a project by its id or number."""
        return self._project(call.name, "resourcemanager.projects.get")

    def projects_get_iam_policy(self, call: Call) -> dict[str, Any]:
        """Return the policy of a project."""
        found = self._project(call.name, "resourcemanager.projects.getIamPolicy")
        return self.policy(found["name"])

    def projects_set_iam_policy(self, call: Call) -> dict[str, Any]:
        """Replace the policy of a project."""
        found = self._project(call.name, "resourcemanager.projects.setIamPolicy")
        policy = call.body["policy"]
        for binding in policy.get("bindings", []):
            for member in binding.get("members", []):
                kind, _, email = member.partition(":")
                known = self._accounts is None or email in self._accounts.emails()
                if kind == "serviceAccount" and not known:
                    raise Refusal(400, f"Service account {email} does not exist.")
        return self.set_policy(found["name"], policy)

    def projects_test_iam_permissions(self, call: Call) -> dict[str, Any]:
        """Return the permissions of the request that the caller has."""
        named = call.body.get("permissions", [])
        return {"permissions": [p for p in named if self.granted is None or p in self.granted]}

    def _project(self, name: str, permission: str) -> dict[str, Any]:
        for ident, project in self._projects.items():
            if name in (f"projects/{ident}", project["name"]):
                return project
        raise permission_denied(permission, name)
