"""Reads the configuration of a command, and checks its project before anything else."""

from __future__ import annotations

import argparse

from google.api_core import exceptions

from cloud.clients import Cloud, default_project
from cloud.discovered import execute
from cloud.endpoints import Endpoints, is_plain
from cloud.errors import is_disabled, lacks_role
from common.errors import ResourceError
from resources.config import Config, names_project, read_config
from resources.kinds.base import resource_errors

DONE, FAILED = 0, 1
_VIEWER = "roles/browser"


def configure(args: argparse.Namespace) -> tuple[Config, Cloud]:
    """Return the configuration and the clients of a command.

    Args:
        args: The parsed arguments.

    Raises:
        UsageError: The configuration or an address is invalid.
        CredentialsError: The project must come from credentials, and they cannot be used.
    """
    endpoints = Endpoints.resolve(args.api_endpoints)
    names = ("project", "model", "trusted_modules")
    given = {name: getattr(args, name, None) for name in names}
    # With emulators there are no credentials to take the project from.
    is_googles = not any(vars(endpoints).values())
    config = read_config(args.config, given, default_project if is_googles else lambda: None)
    return config, Cloud(config.project, endpoints, args.retry_seconds)


def check_project(cloud: Cloud, args: argparse.Namespace) -> None:
    """Raise ResourceError unless the project exists and is active.

    This must be the first check, because most services treat a project that does not exist like an
    empty one.

    Args:
        cloud: The clients of the project.
        args: The parsed arguments, to name the source of the project's id in the message.

    Raises:
        ResourceError: The project does not exist, cannot be seen, or is marked for deletion.
    """
    if args.project:
        said = "--project"
    elif names_project(args.config):
        said = f"project in {args.config}"
    else:
        said = "the project of the credentials"
    addresses = vars(cloud.endpoints).values()
    if cloud.endpoints.cloudresourcemanager is None and any(map(is_plain, addresses)):
        # Emulators do not check projects.
        return
    projects = cloud.discovered("cloudresourcemanager", "v3").projects()
    request = projects.get(name=f"projects/{cloud.project}")
    with resource_errors(f"cannot inspect project {cloud.project}", _VIEWER):
        try:
            found = execute(request, cloud.retry_seconds)
        except (exceptions.Forbidden, exceptions.NotFound) as error:
            if is_disabled(error):
                # Setup enables the API later.
                return
            if isinstance(error, exceptions.Forbidden) and not lacks_role(error):
                raise
            raise ResourceError(
                f"project {cloud.project} does not exist, or this account cannot see it: check the "
                f"id ({said}); if it is correct, grant the account the role {_VIEWER}"
            ) from error
    if found.get("state", "ACTIVE") != "ACTIVE":
        raise ResourceError(
            f"project {cloud.project} ({said}) is marked for deletion: restore it, or choose "
            "another project"
        )
