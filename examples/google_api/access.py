"""Service accounts, and who may do what: IAM and the policies of projects."""

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
    """Policies by resource. Who writes one that was changed since it was read is refused."""

    def __init__(self) -> None:
        super().__init__()
        self._policies: dict[str, dict[str, Any]] = {}

    def policy(self, resource: str) -> dict[str, Any]:
        """A resource -> its policy."""
        return self._policies.setdefault(resource, {"version": 1, "etag": self._etag()})

    def set_policy(self, resource: str, policy: dict[str, Any]) -> dict[str, Any]:
        """A resource, a policy read before and changed -> the policy as it is kept."""
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
    """Service accounts with their policies."""

    document = "iam.v1"

    def service_accounts_create(self, call: Call) -> dict[str, Any]:
        """A new one."""
        project, ident = call.name.removeprefix("projects/"), call.body.get("accountId", "")
        if not _ACCOUNT_ID.fullmatch(ident):
            raise Refusal(400, f"{ident!r} is no id of a service account.")
        email = f"{ident}@{project}.iam.gserviceaccount.com"
        name = f"projects/{project}/serviceAccounts/{email}"
        fixed = {"name": name, "projectId": project, "email": email, "uniqueId": str(self.number())}
        return self.store.create(name, call.body.get("serviceAccount", {}) | fixed)

    def service_accounts_get(self, call: Call) -> dict[str, Any]:
        """One; the project may be `-`."""
        return self.store.get(_full(call.name))

    def service_accounts_list(self, call: Call) -> dict[str, Any]:
        """Those of a project."""
        return listed(call, "accounts", self.store.under(f"{call.values['name']}/serviceAccounts"))

    def service_accounts_patch(self, call: Call) -> dict[str, Any]:
        """Fields named in the mask."""
        account = self.store.get(_full(call.name))
        patched(account, call.body["serviceAccount"], call.body["updateMask"])
        return account

    def service_accounts_delete(self, call: Call) -> dict[str, Any]:
        """Away with one."""
        self.store.delete(_full(call.name))
        return {}

    def service_accounts_get_iam_policy(self, call: Call) -> dict[str, Any]:
        """Who may use one."""
        self.store.get(_full(call.name))
        return self.policy(_full(call.name))

    def service_accounts_set_iam_policy(self, call: Call) -> dict[str, Any]:
        """Change who may use one."""
        self.store.get(_full(call.name))
        return self.set_policy(_full(call.name), call.body["policy"])

    def emails(self) -> set[str]:
        """Of all accounts."""
        return {account["email"] for account in self.store.all()}


def _full(name: str) -> str:
    """A name whose project may be `-` -> the name, by the account's email."""
    email = name.rpartition("/")[2]
    project = email.partition("@")[2].removesuffix(".iam.gserviceaccount.com")
    return name.replace("projects/-/", f"projects/{project}/")


class ResourceManager(_Policies):
    """Projects and their policies. granted: permissions of the caller, all by default.

    accounts: whose service accounts alone a policy may name, as with Google.
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
        """One, by id or number."""
        return self._project(call.name, "resourcemanager.projects.get")

    def projects_get_iam_policy(self, call: Call) -> dict[str, Any]:
        """Who may do what in one."""
        found = self._project(call.name, "resourcemanager.projects.getIamPolicy")
        return self.policy(found["name"])

    def projects_set_iam_policy(self, call: Call) -> dict[str, Any]:
        """Change who may do what."""
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
        """Which of some permissions the caller has."""
        asked = call.body.get("permissions", [])
        return {"permissions": [p for p in asked if self.granted is None or p in self.granted]}

    def _project(self, name: str, permission: str) -> dict[str, Any]:
        for ident, project in self._projects.items():
            if name in (f"projects/{ident}", project["name"]):
                return project
        raise permission_denied(permission, name)
