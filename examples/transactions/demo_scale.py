"""Test what a stream on this machine sustains, and write a page about it.

python -m examples.transactions.demo_scale

It needs Google's emulator of Pub/Sub, which is part of the Google Cloud CLI, and takes two minutes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from examples.local_cloud import (
    INSTALL_COMMAND,
    PROJECT,
    PUBSUB_COMMAND,
    LocalCloud,
    is_installed,
    local_cloud,
    pubsub_jar,
)
from examples.transactions.build import ensure_example

# The emulator keeps the messages of all levels.
PUBSUB_MEMORY = "2g"
PLAN = Path(__file__).parents[2] / "plans" / "demo.toml"
INPUT, OUTPUT, DEAD_LETTERS = (
    f"projects/{PROJECT}/topics/scale-demo-{kind}" for kind in ("input", "output", "dead-letters")
)
SUBSCRIPTION = f"projects/{PROJECT}/subscriptions/scale-demo-input-sub"
READY = f"projects/{PROJECT}/subscriptions/scale-demo-ready"
READY_SECONDS = 120.0


@contextmanager
def stream(servers: LocalCloud, model: Path) -> Iterator[None]:
    """Create the topics, and score messages in another process while the block runs."""
    for topic in (INPUT, OUTPUT, DEAD_LETTERS):
        servers.cloud.publisher().create_topic(name=topic)
    for name, topic in ((SUBSCRIPTION, INPUT), (READY, DEAD_LETTERS)):
        servers.cloud.subscriber().create_subscription(
            name=name, topic=topic, ack_deadline_seconds=60
        )
    flags = {
        "input_subscription": SUBSCRIPTION,
        "model": model,
        "score_output": "normalized_MAE",
        "output_topic": OUTPUT,
        "dead_letter_topic": DEAD_LETTERS,
        "row_timings": "true",
    }
    pairs = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "pipelines.stream_local", *pairs]
    with subprocess.Popen(command, env=servers.environ(), stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for_answer(servers, process)
            yield
        finally:
            process.terminate()


def _wait_for_answer(servers: LocalCloud, process: subprocess.Popen[bytes]) -> None:
    """Wait until the stream makes a message without a row a dead letter, or until it has ended."""
    servers.cloud.publisher().publish(topic=INPUT, messages=[{"data": b"{}"}])
    request = {"subscription": READY, "max_messages": 1, "return_immediately": True}
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if servers.cloud.subscriber().pull(request=request).received_messages:
            return
        time.sleep(0.2)


def main(argv: list[str] | None = None) -> int:
    """Run the demo, and return the exit code of the test."""
    from scale_tests.__main__ import main as scale_test

    parser = argparse.ArgumentParser(description="Test what a stream on this machine sustains.")
    parser.add_argument("--example", type=Path, default=Path("build/example"))
    parser.add_argument(
        "--plan", type=Path, default=PLAN, help="the plan (default: plans/demo.toml)"
    )
    parser.add_argument("--output", type=Path, help="the folder of the result")
    args = parser.parse_args(argv)
    for installed, how in ((pubsub_jar(), PUBSUB_COMMAND), (is_installed(), INSTALL_COMMAND)):
        if not installed:
            print(f"error: an emulator is not installed: run {how}", file=sys.stderr)
            return 1
    ensure_example(args.example)
    output = ["--output", str(args.output)] if args.output else []
    with (
        tempfile.TemporaryDirectory() as folder,
        local_cloud(
            Path(folder), with_pubsub=True, pubsub_memory=PUBSUB_MEMORY, with_labels=False
        ) as servers,
        stream(servers, args.example / "model"),
        patch.dict(os.environ, servers.environment),
    ):
        command = ["stream", "--plan", str(args.plan), "--project", PROJECT, *output]
        print(f"$ millrace scale-test {shlex.join(command)}", flush=True)
        return scale_test(command)


if __name__ == "__main__":
    sys.exit(main())
