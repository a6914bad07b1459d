"""Where a process finds what the steps of a model need."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.errors import UsageError
from model_handlers.manifests.manifest import Manifest
from model_handlers.preparation import Preparation
from model_handlers.read_package import read_files
from model_handlers.trusted_code import TrustedCode, steps_context


@dataclass(frozen=True, eq=False)
class PackagedSteps:
    """The steps of a manifest, before they are loaded. A job carries it to its workers.

    Attributes:
        manifest: The manifest.
        path: The path of the package, from which a worker reads the files of steps; None if the
            steps read no files and call no functions.
        code: The modules from which functions may be imported.
    """

    manifest: Manifest
    path: str | None = None
    code: TrustedCode = field(default_factory=TrustedCode)

    def load(self) -> Preparation:
        """Return the steps, ready to run.

        Raises:
            ModelError: A file or a function cannot be read, or is not what the manifest says.
            UsageError: The steps read files, and the path of the package is not known.
        """
        if self.path is None:
            if self.manifest.files:
                raise UsageError(
                    f"model {self.manifest.name}: its steps read the files "
                    f"{', '.join(self.manifest.files)}: pass the path of the package"
                )
            return Preparation(self.manifest, steps_context({}, self.code))
        return Preparation(
            self.manifest, steps_context(read_files(self.path, self.manifest), self.code)
        )
