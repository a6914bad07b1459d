"""The commands of `millrace`: what each does, and which entry point it starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A command. about: one line. same_as: what `python -m` takes for the same.

    run: `module:function`, called with the arguments; imported only when the command is chosen,
        so that its `--help` does not wait for the modules of the others.
    first: arguments that go before those of the user.
    """

    about: str
    same_as: tuple[str, ...]
    run: str
    first: tuple[str, ...] = ()


COMMANDS = {
    "score": Entry(
        "score files or tables of BigQuery",
        ("pipelines.batch_local", "pipelines.batch_vertex"),
        "millrace.scoring:score",
    ),
    "stream": Entry(
        "score messages of Pub/Sub as they come",
        ("pipelines.stream_local", "pipelines.stream_vertex"),
        "millrace.scoring:stream",
    ),
    "replay": Entry(
        "score dead letters once more",
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
        "model_handlers.package:main",
    ),
    "serve": Entry(
        "serve a model package over HTTP",
        ("serving",),
        "serving.__main__:main",
        ("run",),
    ),
    "deploy": Entry(
        "put a model package behind an endpoint of Vertex AI",
        ("serving deploy",),
        "serving.__main__:main",
        ("deploy",),
    ),
    "deploy status": Entry(
        "list endpoints of Vertex AI and what is deployed there",
        ("serving status",),
        "serving.__main__:main",
        ("status",),
    ),
    "deploy undeploy": Entry(
        "take models away from an endpoint of Vertex AI",
        ("serving undeploy",),
        "serving.__main__:main",
        ("undeploy",),
    ),
    "resources": Entry(
        "set up, inspect and remove resources of Google Cloud",
        ("resources",),
        "resources.__main__:main",
    ),
    "template": Entry(
        "write the file of a Flex Template",
        ("pipelines.template_spec",),
        "pipelines.template_spec:main",
    ),
    "demo": Entry(
        "build the example, score it and show the result",
        ("examples.transactions.demo",),
        "examples.transactions.demo:main",
    ),
    "local-cloud": Entry(
        "run servers that stand in for Google Cloud until Ctrl-C",
        ("examples.local_cloud",),
        "examples.local_cloud:main",
    ),
}
NAMES = {same: f"millrace {name}" for name, entry in COMMANDS.items() for same in entry.same_as}
