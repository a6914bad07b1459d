"""The commands of `millrace`: what each one does, and which function it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A command.

    Attributes:
        about: One line of help.
        same_as: The arguments of `python -m` that run the same command.
        run: The function that runs the command, as `module:function`. It is imported only when the
            command is chosen, because the modules of some commands take seconds to import.
        first: Arguments that the function gets before those of the user.
    """

    about: str
    same_as: tuple[str, ...]
    run: str
    first: tuple[str, ...] = ()


COMMANDS = {
    "score": Entry(
        "score files or BigQuery tables",
        ("pipelines.batch_local", "pipelines.batch_vertex"),
        "millrace.scoring:score",
    ),
    "stream": Entry(
        "score Pub/Sub messages as they arrive",
        ("pipelines.stream_local", "pipelines.stream_vertex"),
        "millrace.scoring:stream",
    ),
    "replay": Entry(
        "score dead letters again",
        ("pipelines.replay",),
        "pipelines.replay.command:main",
    ),
    "launch": Entry(
        "start a pipeline on Dataflow, or follow a job",
        ("pipelines.launch",),
        "pipelines.launch.command:main",
    ),
    "package": Entry(
        "turn a model file into a model package",
        ("model_handlers.package",),
        "millrace.package_command:main",
    ),
    "inspect": Entry(
        "print what a model package takes, does and gives",
        ("model_handlers.inspect_package",),
        "model_handlers.inspect_package:main",
    ),
    "serve": Entry(
        "serve a model package over HTTP",
        ("serving",),
        "serving.__main__:main",
        ("run",),
    ),
    "deploy": Entry(
        "deploy a model package to a Vertex AI endpoint",
        ("serving deploy",),
        "serving.__main__:main",
        ("deploy",),
    ),
    "deploy status": Entry(
        "list Vertex AI endpoints and their deployed models",
        ("serving status",),
        "serving.__main__:main",
        ("status",),
    ),
    "deploy undeploy": Entry(
        "remove models from a Vertex AI endpoint",
        ("serving undeploy",),
        "serving.__main__:main",
        ("undeploy",),
    ),
    "resources": Entry(
        "set up, inspect and remove Google Cloud resources",
        ("resources",),
        "resources.__main__:main",
    ),
    "scale-test": Entry(
        "measure a stream, an endpoint or a batch",
        ("scale_tests",),
        "scale_tests.__main__:main",
    ),
    "template": Entry(
        "write the specification file of a Flex Template",
        ("pipelines.template_spec",),
        "pipelines.template_spec:main",
    ),
    "explain": Entry(
        "explain an error, given the code at the end of its message",
        ("millrace explain",),
        "millrace.explain:main",
    ),
    "demo": Entry(
        "build the example, score it and show the result",
        ("examples.transactions.demo",),
        "examples.transactions.demo:main",
    ),
    "local-cloud": Entry(
        "run stand-ins for Google Cloud on this machine until Ctrl-C",
        ("examples.local_cloud",),
        "examples.local_cloud:main",
    ),
}
NAMES = {same: f"millrace {name}" for name, entry in COMMANDS.items() for same in entry.same_as}
