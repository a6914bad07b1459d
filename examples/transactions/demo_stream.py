"""Score a stream of messages on this machine, and check that every message is accounted for.

python -m examples.transactions.demo_stream

It needs Google's emulator of Pub/Sub, which is part of the Google Cloud CLI, and the servers of
`make emulators`.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

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
from model_handlers.package import read_manifest

TOPICS = {
    kind: f"projects/{PROJECT}/topics/pytorch-autoencoder-{kind}-local"
    for kind in ("input", "output", "dead-letter")
}
SUBSCRIPTIONS = {
    kind: f"projects/{PROJECT}/subscriptions/pytorch-autoencoder-{kind}-sub-local"
    for kind in TOPICS
}
TABLE = f"{PROJECT}.frameworks.pytorch_autoencoder_streaming"


def command(example: Path) -> list[str]:
    """Return the command that scores the stream with the model of the example's folder."""
    flags = {
        "input_subscription": SUBSCRIPTIONS["input"],
        "model": example / "model",
        "score_output": "normalized_MAE",
        "output_topic": TOPICS["output"],
        "output_table": TABLE,
        "dead_letter_topic": TOPICS["dead-letter"],
        "run_id": "demo",
        "report_seconds": 5,
        "stop_after_seconds": 5,
    }
    pairs = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "pipelines.stream_local", *pairs]


def messages(path: Path, features: Sequence[str], rows: int) -> Iterator[bytes]:
    """Generate one message per transaction, in the form of the reference implementation.

    Faulty values become null, since JSON has no NaN and no Infinity.

    Args:
        path: The Parquet file of transactions.
        features: The names of the features that a message contains.
        rows: The number of messages.
    """
    for number, row in enumerate(pq.read_table(path).slice(0, rows).to_pylist()):
        values = {name: row[name] for name in features}
        plain = {k: v if v is not None and math.isfinite(v) else None for k, v in values.items()}
        message = {**plain, "test_id": "demo", "sequence": number, "publish_time": time.time()}
        yield json.dumps(message).encode()


def publish(servers: LocalCloud, bodies: Iterator[bytes], rate: float) -> int:
    """Publish messages to the input topic at a rate, however fast they are read.

    Args:
        servers: The running servers.
        bodies: The messages.
        rate: The number of messages per second.

    Returns:
        The number of messages.
    """
    client, start, count = servers.cloud.publisher(), time.monotonic(), 0
    for body in bodies:
        time.sleep(max(0.0, start + count / rate - time.monotonic()))
        client.publish(topic=TOPICS["input"], messages=[{"data": body}])
        count += 1
    return count


def pull(servers: LocalCloud, kind: str) -> list[Any]:
    """Pull and acknowledge all messages of the topic of a kind, which is a key of `TOPICS`."""
    client, found = servers.cloud.subscriber(), []
    request = {
        "subscription": SUBSCRIPTIONS[kind],
        "max_messages": 1_000,
        "return_immediately": True,
    }
    while received := client.pull(request=request).received_messages:
        found += [one.message for one in received]
        client.acknowledge(
            subscription=SUBSCRIPTIONS[kind], ack_ids=[one.ack_id for one in received]
        )
    return found


def show(
    published: int, scored: list[Any], letters: list[Any], rows_in_table: int
) -> tuple[bool, str]:
    """Compare the published messages with the results.

    Args:
        published: The number of published messages.
        scored: The messages of the output topic.
        letters: The messages of the dead-letter topic.
        rows_in_table: The number of row ids in the output table.

    Returns:
        Whether the counts agree, and lines of text that show them.
    """
    ids = {json.loads(one.data)["row_id"] for one in scored}
    dead = {one.attributes["millrace_row_id"] for one in letters}
    balanced = published == len(ids) + len(dead) and rows_in_table == len(ids)
    lines = [
        f"published {published:,} = scored {len(ids):,} + dead letters {len(dead):,}, and "
        f"{rows_in_table:,} rows in the table: {'yes' if balanced else 'NO'}",
        "",
        "the first results on the output topic:",
        *(f"  {one.data.decode()}" for one in scored[:2]),
        "",
        "the first dead letter, with the original message and why it was not scored:",
        *(f"  {one.data.decode()[:100]}..." for one in letters[:1]),
        *(f"  {name}: {value}" for one in letters[:1] for name, value in _attributes(one)),
    ]
    return balanced, "\n".join(lines)


def _attributes(message: Any) -> list[tuple[str, str]]:
    """Return the attributes that Millrace has added to a message."""
    return sorted((k, v) for k, v in message.attributes.items() if k.startswith("millrace_"))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Score a stream on this machine.")
    parser.add_argument(
        "--example",
        type=Path,
        default=Path("build/example"),
        help="folder of the example, which is built if it does not exist (default: build/example)",
    )
    parser.add_argument(
        "--messages", type=int, default=2_000, help="number of messages (default: 2000)"
    )
    parser.add_argument(
        "--rate", type=float, default=100.0, help="messages per second (default: 100)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the demo, and return the exit code: 0 if every message is accounted for."""
    args = _parse(argv)
    for installed, how in ((pubsub_jar(), PUBSUB_COMMAND), (is_installed(), INSTALL_COMMAND)):
        if not installed:
            print(f"error: an emulator is not installed: run {how}", file=sys.stderr)
            return 1
    ensure_example(args.example)
    features = read_manifest(str(args.example / "model")).features
    with (
        tempfile.TemporaryDirectory() as folder,
        local_cloud(Path(folder), with_pubsub=True, with_labels=False) as servers,
    ):
        servers.cloud.bigquery().create_dataset(TABLE.rsplit(".", 1)[0])
        for kind, topic in TOPICS.items():
            servers.cloud.publisher().create_topic(name=topic)
            servers.cloud.subscriber().create_subscription(
                name=SUBSCRIPTIONS[kind], topic=topic, ack_deadline_seconds=60
            )
        for name, address in servers.environment.items():
            print(f"$ export {name}={address}")
        arguments = command(args.example)
        print("$ " + shlex.join(["python", *arguments[1:]]) + "\n", flush=True)
        bodies = messages(args.example / "transactions.parquet", features, args.messages)
        process = subprocess.Popen(arguments, env=servers.environ())
        sender = threading.Thread(target=publish, args=(servers, bodies, args.rate))
        sender.start()
        code = process.wait()
        sender.join()
        if code:
            return code
        scored, letters = pull(servers, "output"), pull(servers, "dead-letter")
        sql = f"SELECT COUNT(DISTINCT row_id) AS n FROM `{TABLE}`"
        (row,) = servers.cloud.bigquery().query(sql).result()
    balanced, text = show(args.messages, scored, letters, row["n"])
    print(f"\n{text}")
    return 0 if balanced else 1


if __name__ == "__main__":
    sys.exit(main())
