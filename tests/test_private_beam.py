"""Private names of Beam are used in only three modules, and exist in the installed Beam."""

import dis
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import apache_beam as beam
import pytest
from beam_names import OTHERS, names_in, private_names
from packaging.requirements import Requirement
from packaging.version import Version
from source_tree import ROOT, module_names, modules, shipped_packages

IN_PROCESS = "common/private_beam/in_process.py"
ANY_RUNNER = "common/private_beam/any_runner.py"
PROCESSES = "common/private_beam/worker_processes.py"


class Needed(NamedTuple):
    """A private name of Beam: its module, its path in the module, its user and the reason."""

    module: str
    path: str
    by: str
    why: str

    @property
    def fault(self) -> str:
        return (
            f"Beam {beam.__version__} no longer has {self.module}.{self.path}, which {self.by} "
            f"needs: {self.why}"
        )


_OPTIONS = "apache_beam.options.pipeline_options"
NEEDED = [
    Needed(
        "apache_beam.runners.portability.fn_api_runner.worker_handlers",
        "DATA_BUFFER_TIME_LIMIT_MS",
        IN_PROCESS,
        "a batch run with several workers would lose rows",
    ),
    Needed(
        "apache_beam.runners.portability.fn_api_runner.fn_runner",
        "consolidate_monitoring_infos",
        IN_PROCESS,
        "the memory of a stream would grow by 26 KB with each bundle",
    ),
    Needed(
        "apache_beam.runners.worker.worker_pool_main",
        "subprocess.Popen",
        PROCESSES,
        "the error of a failing run would be hidden among tracebacks",
    ),
    Needed(
        _OPTIONS, "_BeamArgumentParser._option_string_actions", ANY_RUNNER, "it lists Beam's flags"
    ),
    Needed(
        _OPTIONS,
        "PipelineOptions._add_argparse_args",
        ANY_RUNNER,
        "each group of options adds its flags with it",
    ),
    Needed(
        "apache_beam.io.gcp.pubsub",
        "ReadFromPubSub._source",
        ANY_RUNNER,
        "ReadMessages reads it without creating an object per message",
    ),
    Needed(
        "apache_beam.io.gcp.gcsfilesystem",
        "GCSFileSystem._gcsIO",
        ANY_RUNNER,
        "objects are pinned and replaced with the client that reads them",
    ),
    Needed(
        "apache_beam.internal.gcp.auth",
        "_Credentials._credentials_init",
        ANY_RUNNER,
        "emulators are reached without credentials",
    ),
]


def product() -> list[Path]:
    return [path for package in shipped_packages() for path in modules(package)]


def has(owner: Any, name: str) -> bool:
    """Return whether a class or module has an attribute, or a method of the class sets it."""
    if hasattr(owner, name):
        return True
    functions = [
        function
        for kind in getattr(owner, "__mro__", ())
        for function in vars(kind).values()
        if isinstance(function, FunctionType)
    ]
    return any(
        step.opname == "STORE_ATTR" and step.argval == name
        for function in functions
        for step in dis.get_instructions(function)
    )


def check(needed: Needed) -> None:
    """Raise AssertionError if the installed Beam does not have a name."""
    try:
        owner: Any = importlib.import_module(needed.module)
    except ImportError:
        raise AssertionError(needed.fault) from None
    *parents, last = needed.path.split(".")
    for name in parents:
        owner = getattr(owner, name, None)
        assert owner is not None, needed.fault
    assert has(owner, last), needed.fault


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.path)
def test_beam_still_has_the_private_names(needed: Needed) -> None:
    check(needed)


@pytest.mark.parametrize(
    ("module", "path"),
    [
        ("apache_beam.runners.moved", "Any"),
        ("apache_beam.pipeline", "_Moved.TIMEOUT"),
        (_OPTIONS, "_BeamArgumentParser._moved"),
    ],
)
def test_a_name_that_a_release_moves_is_reported_with_the_module_that_needs_it(
    module: str, path: str
) -> None:
    with pytest.raises(AssertionError) as raised:
        check(Needed(module, path, IN_PROCESS, "for a test"))
    assert str(raised.value).startswith(
        f"Beam {beam.__version__} no longer has {module}.{path}, which {IN_PROCESS} needs: for a "
    )


def test_each_underscore_name_of_the_module_is_checked() -> None:
    used = private_names(ROOT / ANY_RUNNER).keys()
    checked = {part for one in NEEDED if one.by == ANY_RUNNER for part in one.path.split(".")}
    assert used
    assert used <= checked
    assert {part for part in checked if part.startswith("_")} <= used


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "path", [path for path in product() if path.parent.name != "private_beam"], ids=str
)
def test_underscore_names_of_beam_are_used_nowhere_else(path: Path) -> None:
    found = private_names(path)
    assert not found, (
        f"{path.relative_to(ROOT)} uses {found} (name: line), which are private names of Beam: "
        f"move them to {ANY_RUNNER} or a module beside it"
    )


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from apache_beam.runners.direct.executor import _ExecutorService", ["_ExecutorService"]),
        ("import apache_beam.runners._private as p", ["_private"]),
        ("from apache_beam.internal.gcp import auth\nauth._C._x = 1", ["_C", "_x"]),
        ("import apache_beam as beam\nbeam.io.gcp.pubsub._PubSubSource('t')", ["_PubSubSource"]),
        ("from apache_beam.io import FileSystems as F\nF.get('p')._gcsIO()", ["_gcsIO"]),
        ("from apache_beam.io import Read\ngetattr(Read, '_x')", ["_x"]),
        ("from apache_beam.io import Read\nRead('x')[0]._y", ["_y"]),
        # The type of a parameter is unknown, so any name that no module defines may be Beam's.
        ("def f(context):\n    return context._watermarks", ["_watermarks"]),
        ("class A(B):\n    def f(self):\n        return self._source", ["_source"]),
        ("__import__('apache_beam.runners._private')", ["_private"]),
        (
            "from apache_beam.options.pipeline_options import PipelineOptions\n"
            "class Own(PipelineOptions):\n    def _add_argparse_args(cls, parser): ...",
            ["_add_argparse_args"],
        ),
    ],
)
def test_an_underscore_name_of_beam_is_found(source: str, names: list[str]) -> None:
    assert sorted(names_in(source)) == sorted(names)


@pytest.mark.parametrize(
    "source",
    [
        "import apache_beam as beam\nbeam.__version__",
        "import os\nimport apache_beam\nos._exit(1)",
        "class A:\n    def __init__(self):\n        self._x = 1\n    def f(self):\n        self._x",
        "import apache_beam as beam\nclass A(beam.DoFn):\n    def _own(self): ...",
        "class A:\n    _x: int\ndef f(a):\n    return a._x",
        "def f(row):\n    return row._replace(a=1)",
    ],
)
def test_names_of_other_libraries_are_ignored(source: str) -> None:
    assert names_in(source) == {}


def test_listed_names_of_other_libraries_are_used() -> None:
    text = "".join(path.read_text() for path in product())
    assert not [name for name in OTHERS if f".{name}" not in text and f'"{name}"' not in text]


def test_the_tested_beam_is_the_latest_one_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (allowed,) = (
        one.specifier
        for one in map(Requirement, project["dependencies"])
        if one.name == "apache-beam"
    )
    tested = Version(beam.__version__)
    assert allowed.contains(tested)
    assert not allowed.contains(f"{tested.major}.{tested.minor + 1}.0")


# A user's own pipeline, which counts how many times its step is pickled.
USERS_OWN = """
import sys
import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import worker_handlers

# Copies of the step find the list there too.
sys.pickled = []

class Step(beam.DoFn):
    def __reduce__(self):
        sys.pickled.append(1)
        return Step, ()

    def process(self, element):
        yield element

with beam.Pipeline("FnApiRunner") as pipeline:
    pipeline | beam.Create([1, 2]) | beam.ParDo(Step())
print(len(sys.pickled))
print(worker_handlers.DATA_BUFFER_TIME_LIMIT_MS)
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_do_not_change_how_a_users_own_pipeline_runs() -> None:
    # The examples import the emulators, which may not be installed.
    packages = [package for package in shipped_packages() if package != "examples"]
    names = [name for package in packages for name in module_names(package)]
    imports = (
        f"import {', '.join(names)}\n"
        "from pipelines.beam_args import beam_options\n"
        "beam_options([]), beam_options([], streaming=True)\n"
    )
    installs = "from common.private_beam import in_process\nin_process.keep_buffers_whole()\n"
    plain = run(USERS_OWN)
    assert run(imports + USERS_OWN) == plain
    # The last printed value is the one that the patch changes.
    assert run(installs + USERS_OWN).split()[-1] != plain.split()[-1]
