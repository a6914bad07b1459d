"""Create the model that a package's weights belong to, from a class of a trusted module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import ManifestError
from model_handlers.manifests.manifest import Manifest
from model_handlers.model_errors import as_model_error
from model_handlers.trusted_code import (
    TrustedCode,
    architecture_name,
    check_trusted,
    import_name,
)

if TYPE_CHECKING:
    import torch


def build_architecture(manifest: Manifest, code: TrustedCode) -> torch.nn.Module:
    """Create an instance of the class that a manifest's architecture names.

    Args:
        manifest: A manifest whose `architecture` is `module:Class`.
        code: The modules that may be imported.

    Raises:
        UnsafeModel: The module is not trusted or comes from the package; it was not imported.
        ManifestError: The architecture does not name a torch.nn.Module class.
        ModelError: The module cannot be imported, or the class cannot be created.
    """
    import torch

    name = architecture_name(manifest)
    check_trusted(manifest, code.modules)
    kind = import_name(name, "architecture", code)
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise ManifestError(f"architecture {name} is not a torch.nn.Module class")
    with as_model_error(f"architecture {name} cannot be created with architecture_args"):
        return kind(**manifest.architecture_args)
