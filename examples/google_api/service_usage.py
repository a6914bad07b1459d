"""The stand-in for Service Usage: the enabled APIs of projects."""

from __future__ import annotations

from typing import Any

from examples.google_api.faults import Call, Refusal, permission_denied
from examples.google_api.server import Service
from examples.google_api.store import listed

_TYPE = "type.googleapis.com/google.api.serviceusage.v1."
# Google has more services. These include all that Millrace needs.
KNOWN = tuple(
    f"{name}.googleapis.com"
    for name in (
        *("aiplatform", "artifactregistry", "bigquery", "bigquerystorage", "cloudbuild"),
        *("cloudresourcemanager", "compute", "dataflow", "iam", "logging", "monitoring"),
        *("pubsub", "serviceusage", "storage"),
    )
)


class ServiceUsage(Service):
    """The stand-in for Service Usage; all projects have the same services enabled.

    Args:
        enabled: The hosts of the services that are enabled at the start.
        polls: The number of polls after which an operation ends.
    """

    document = "serviceusage.v1"

    def __init__(self, *enabled: str, polls: int = 1) -> None:
        super().__init__(polls=polls)
        self.enabled = set(enabled)

    def services_list(self, call: Call) -> dict[str, Any]:
        """List all services, or the services in a state."""
        parent = call.values["parent"]
        return listed(call, "services", [self._service(f"{parent}/services/{n}") for n in KNOWN])

    def services_get(self, call: Call) -> dict[str, Any]:
        """Return a service."""
        return self._service(call.name)

    def services_batch_enable(self, call: Call) -> dict[str, Any]:
        """Enable up to 20 services."""
        names = call.body.get("serviceIds", [])
        if not 0 < len(names) <= 20:
            raise Refusal(400, f"A batch has 1 to 20 services, not {len(names)}.")
        if unknown := sorted(set(names) - set(KNOWN)):
            message = f"Not found or permission denied for service(s): {', '.join(unknown)}."
            raise Refusal(403, message)

        def finish() -> dict[str, Any]:
            self.enabled.update(names)
            services = [self._service(f"{call.values['parent']}/services/{n}") for n in names]
            return {"@type": f"{_TYPE}BatchEnableServicesResponse", "services": services}

        return self.start("", finish)

    def operations_get(self, call: Call) -> dict[str, Any]:
        """Count a poll of an operation, and return the operation."""
        return self.poll(call.name)

    def _service(self, name: str) -> dict[str, Any]:
        parent, _, service = name.partition("/services/")
        if service not in KNOWN:
            raise permission_denied("serviceusage.services.get", name)
        state = "ENABLED" if service in self.enabled else "DISABLED"
        return {"name": name, "parent": parent, "config": {"name": service}, "state": state}
