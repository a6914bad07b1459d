"""What a Dataflow worker installs; everything else about the project is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

PACKAGES = (
    "cloud",
    "common",
    "examples",
    "millrace",
    "model_handlers",
    "pipelines",
    "resources",
    "scale_tests",
    "serving",
    "transforms",
)


class BuildWithPages(build_py):
    """Copies the pages of the operating guide into the wheel, for `millrace explain`."""

    def run(self) -> None:
        """Build the modules, then copy the pages."""
        super().run()
        pages = Path("docs/operate")
        # The images are built without them: nobody types a command there.
        if pages.exists() and not self.editable_mode:
            copies = Path(self.build_lib) / "millrace" / "operate"
            shutil.copytree(pages, copies, dirs_exist_ok=True)


setup(
    packages=find_packages(include=[*PACKAGES, *(f"{name}.*" for name in PACKAGES)]),
    cmdclass={"build_py": BuildWithPages},
)
