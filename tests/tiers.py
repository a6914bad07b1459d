"""Finds the tier of each test, by cost, from its fixtures and from the names that it uses."""

import inspect
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.direct.direct_runner import SwitchingDirectRunner

TIERS = {
    "pure": "runs no Beam pipeline and starts no process",
    "beam": "runs pipelines in this process",
    "emulators": "needs the stand-ins for Google Cloud",
    "process": "starts processes",
    "bench": "tests the programs in benchmarks/",
}
FAST = ("pure", "beam")
TESTS = Path(__file__).parent
# What ctypes starts to find a shared library, when the first test of a process imports torch.
FINDERS = {"ldconfig", "gcc", "cc", "ld", "objdump"}
EMULATORS = {"emulators", "stream_emulators"}
PROCESSES = {"subprocess", "multiprocessing"}
# These functions start a process, although the test names nothing that does.
STARTS_PROCESSES = {
    "model_handlers.trials.try_package.try_package",
    "scale_tests.__main__",
    "examples.transactions.torchserve.torchserve",
}
# These functions run a pipeline, although the test names nothing of Beam.
RUNS_BEAM = {"pipelines.command.main", "pipelines.command.run_command"}


def tier_of(item: pytest.Function) -> str:
    """Return the most expensive tier for which a collected test gives evidence."""
    if item.path.name.startswith("test_benchmark_"):
        return "bench"
    if uses_emulators(item):
        return "emulators"
    names = frozenset[str]().union(*map(names_used_by, functions_of(item)))
    packages = {name.partition(".")[0] for name in names}
    if packages & PROCESSES or names & STARTS_PROCESSES or "beam_processes" in item.fixturenames:
        return "process"
    if names & RUNS_BEAM or "apache_beam" in packages:
        return "beam"
    return "pure"


def uses_emulators(item: pytest.Function) -> bool:
    """Return whether a test needs the stand-ins for Google Cloud."""
    # Some fixtures request them only if a parameter names them.
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(name in EMULATORS for name in (*item.fixturenames, *map(str, parameters)))


def functions_of(item: pytest.Function) -> Iterator[Any]:
    """Yield the function of a collected test and the functions of its fixtures."""
    yield item.function
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        for definition in definitions:
            yield definition.func


@cache
def names_used_by(function: Any) -> frozenset[str]:
    """Return the full names that a function uses, also through other code of the tests."""
    names, waiting, seen = set(), [function], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, types.ModuleType):
            names.add(value.__name__)
        elif isinstance(value, type | types.FunctionType) and id(value) not in seen:
            seen.add(id(value))
            names.add(f"{value.__module__}.{value.__qualname__}")
            if is_of_tests(value.__module__):
                waiting += parts(value) if isinstance(value, type) else used(value)
    return frozenset(names)


@cache
def is_of_tests(module: str) -> bool:
    """Return whether a module is in the folder of the tests."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and Path(file).parent == TESTS


def parts(kind: type) -> Iterator[Any]:
    """Yield the bases and methods of a class."""
    yield from kind.__bases__
    for value in vars(kind).values():
        yield getattr(value, "fget", getattr(value, "__func__", value))


def used(function: types.FunctionType) -> Iterator[Any]:
    """Yield the values that the code of a function names."""
    # Unwrap property tests of Hypothesis and functions under functools.wraps.
    property_test = getattr(function, "hypothesis", None)
    function = inspect.unwrap(property_test.inner_test if property_test else function)
    for name in names_of(function.__code__):
        yield function.__globals__.get(name)
    for cell in function.__closure__ or ():
        yield cell.cell_contents


def names_of(code: types.CodeType) -> Iterator[str]:
    """Yield the names in a function's code and in the functions and classes inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_of(constant)


def looks_for_a_library(given: Sequence[Any]) -> bool:
    """Return whether the arguments of Popen.__init__ are those of ctypes.util.find_library."""
    command = given[1] if len(given) > 1 else ()
    first = command[0] if isinstance(command, list | tuple) and command else ""
    return Path(str(first)).name in FINDERS


@contextmanager
def confined(tier: str) -> Iterator[list[str]]:
    """Fail everything in the block that only a more expensive tier may do.

    Yield a list of these failures, because the code under test may catch them.
    """
    tried: list[str] = []

    def forbid(owner: Any, name: str, deed: str) -> None:
        original = getattr(owner, name)

        def fail(*given: Any, **options: Any) -> Any:
            if looks_for_a_library(given):
                return original(*given, **options)
            tried.append(f"this test {deed}, but tests/tiers.py found it to be `{tier}`")
            # The main thread would wait forever for a thread that failed here.
            main = threading.main_thread()
            if main.ident and main is not threading.current_thread():
                signal.pthread_kill(main.ident, signal.SIGUSR1)
            pytest.fail(tried[-1])

        patch.setattr(owner, name, fail)

    with pytest.MonkeyPatch.context() as patch:
        if tier in FAST:
            forbid(subprocess.Popen, "__init__", "starts a process")
            forbid(BaseProcess, "start", "starts a process")
            forbid(os, "fork", "starts a process")
            # Beam would choose Prism, and download it or use the one that an earlier test started.
            forbid(SwitchingDirectRunner, "run_pipeline", "names no runner")
        if tier == "pure":
            forbid(beam.Pipeline, "run", "runs a pipeline")
        signal.signal(signal.SIGUSR1, lambda *_: pytest.fail(tried[-1]) if tried else None)
        yield tried
