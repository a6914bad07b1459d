"""Where a command works: its configuration and its project, looked at before anything else."""

from __future__ import annotations

import argparse

from google.api_core import exceptions

from cloud.clients import Cloud, default_project
from cloud.discovered import execute
from cloud.endpoints import Endpoints, is_plain
from cloud.errors import is_disabled, lacks_role
from common.errors import OutputError
from resources.config import Config, read_config
from resources.kinds.base import resource_errors

DONE, FAILED = 0, 1
_VIEWER = "roles/browser"


def configure(args: argparse.Namespace) -> tuple[Config, Cloud]:
    """Arguments -> the configuration and its cloud. Raises UsageError, CredentialsError."""
    endpoints = Endpoints.resolve(args.api_endpoints)
    names = ("project", "model", "trusted_modules")
    given = {name: getattr(args, name, None) for name in names}
    # Whoever speaks to emulators has no credentials that could name one.
    is_googles = not any(vars(endpoints).values())
    config = read_config(args.config, given, default_project if is_googles else lambda: None)
    return config, Cloud(config.project, endpoints, args.retry_seconds)


def check_project(cloud: Cloud, args: argparse.Namespace) -> None:
    """A cloud, arguments -> nothing. Raises OutputError where the project is not there.

    Asked before anything else: most services answer of a project that does not exist as of one
    that holds nothing.
    """
    said = "--project" if args.project else f"project in {args.config}"
    addresses = vars(cloud.endpoints).values()
    if cloud.endpoints.cloudresourcemanager is None and any(map(is_plain, addresses)):
        # Emulators know no projects.
        return
    projects = cloud.discovered("cloudresourcemanager", "v3").projects()
    request = projects.get(name=f"projects/{cloud.project}")
    with resource_errors(f"project {cloud.project} cannot be looked at", _VIEWER):
        try:
            found = execute(request, cloud.retry_seconds)
        except (exceptions.Forbidden, exceptions.NotFound) as error:
            if is_disabled(error):
                # Setup enables it.
                return
            if isinstance(error, exceptions.Forbidden) and not lacks_role(error):
                raise
            raise OutputError(
                f"projects/{cloud.project} does not exist, or you may not see it: is "
                f"{cloud.project!r} the id that you meant ({said})? If it is, grant the account "
                f"the role {_VIEWER}"
            ) from error
    if found.get("state", "ACTIVE") != "ACTIVE":
        raise OutputError(f"project {cloud.project} ({said}) is about to be deleted")
