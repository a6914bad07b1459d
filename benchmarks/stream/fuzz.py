"""Sends malformed messages of every kind through the decoding of a stream, and through its graph.

python -m benchmarks.stream.fuzz

Each message must be either scored or written as one dead letter with its exact bytes, and no
exception may be raised. The first violation is reported with the seed that reproduces it.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.bench import Bench
from benchmarks.row_costs import write_results
from benchmarks.stream.damage import mutated, packed
from benchmarks.stream.fuzz_avro import REVISIONS, Written, written
from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from examples.transactions.data import FEATURES
from model_handlers.manifests.manifest import Manifest
from model_handlers.package import read_manifest
from model_handlers.torch_model import TorchModelHandler
from pipelines.stream.graph import ScoreStream, StreamSinks
from transforms.encode import output_schema
from transforms.json_rows.row_format import RowFormat
from transforms.messages.body import ENCODING, read_bodies
from transforms.messages.decode import MessageFormat, MessageKind, decode_messages
from transforms.messages.message import Message, serialize
from transforms.messages.several_rows import split_rows
from transforms.output_fields import choose_fields
from transforms.provenance import Provenance, utc_now
from transforms.row_schemas import CARRIED
from transforms.validate import validate

SEED = 20_261_121
# The number of messages in a batch, like the bundles of a stream.
SIZES = (1, 7, 100, 500)
ROW = dict.fromkeys(FEATURES, 0.5)
NESTED = b'{"x":' * 5_000
VALUES: list[Any] = [None, "x", "", True, [], {}, [1.0], 10**40, 1e39, -0.0, "1.5", "NaN", 1 << 63]
METHOD = {
    "messages": "generated from a seed; kinds: how a good message was changed, outcomes: what it "
    "became",
    "balance": "the ids of rows and dead letters together are those of the rows in the messages, "
    "each once; each dead letter has the bytes of its row",
}


def named(rng: random.Random, **changes: Any) -> bytes:
    """Return a good row with some changed values as a JSON object."""
    return json.dumps(ROW | {rng.choice(FEATURES): rng.random()} | changes).encode()


def several(rng: random.Random) -> list[bytes]:
    """Return some good rows and one mutated row."""
    rows = [named(rng) for _ in range(rng.randrange(1, 5))]
    return [*rows, mutated(rng, named(rng))] if rng.random() < 0.5 else rows


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "good": named,
    "good list": lambda rng: json.dumps({"features": [rng.random()] * len(FEATURES)}).encode(),
    "array": lambda rng: b"[%b]" % b",".join(several(rng)),
    "lines": lambda rng: b"\n".join(several(rng)),
    "unknown field": lambda rng: named(rng, extra=rng.choice(VALUES)),
    "carried field": lambda rng: named(rng, sequence=rng.choice(VALUES), test_id=""),
    "missing feature": lambda rng: json.dumps(
        {n: v for n, v in ROW.items() if n != rng.choice(FEATURES)}
    ).encode(),
    "wrong value": lambda rng: named(rng, **{rng.choice(FEATURES): rng.choice(VALUES)}),
    "NaN": lambda rng: named(rng, **{rng.choice(FEATURES): float(rng.choice(["nan", "inf"]))}),
    "other shape": lambda rng: json.dumps(rng.choice([1, "x", None, [], [1], {}, True])).encode(),
    "wrong width": lambda rng: json.dumps({"features": [0.5] * rng.randrange(60)}).encode(),
    "mixed list": lambda rng: json.dumps(
        {"features": rng.choices([0.5, *VALUES], k=len(FEATURES))}
    ).encode(),
    "duplicate key": lambda rng: named(rng)[:-1] + b',"V1":1}',
    "deep": lambda rng: rng.choice([NESTED, b"[" * 5_000, named(rng)[:-1] + b',"y":' + NESTED]),
    "not UTF-8": lambda rng: named(rng, extra="x").replace(b'"x"', b'"\xff\xfe"'),
    "empty": lambda rng: b"",
    "random bytes": lambda rng: rng.randbytes(rng.randrange(200)),
    "mutated": lambda rng: mutated(rng, named(rng)),
    "large": lambda rng: b'{"extra":"' + b"x" * rng.randrange(1 << 20, 3 << 20) + b'"}',
}
# One message in this many has 10 MB.
HUGE = 20_000


def arrow(rng: random.Random) -> bytes:
    """Return a good row as an Arrow stream."""
    sink = pa.BufferOutputStream()
    table = pa.table({name: [rng.random()] for name in FEATURES})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


class Sent(NamedTuple):
    """A random message.

    Attributes:
        kind: The name of its kind.
        message: The message.
        features: The features of its only row if it must be read, else None.
    """

    kind: str
    message: Message
    features: list[float] | None


def any_message(rng: random.Random, kind: MessageKind, number: int) -> Sent:
    """Return a random message."""
    attributes: dict[str, str] = {}
    features: list[float] | None = None
    if kind == "json":
        name = rng.choice(list(KINDS))
        body = KINDS[name](rng) if number % HUGE else b"x" * (10 << 20)
        if name.startswith("good") and number % HUGE:
            sent_row = json.loads(body)
            features = sent_row.get("features") or list(sent_row.values())
    else:
        row = ROW | {rng.choice(FEATURES): rng.randrange(-64, 64) / 4}
        sent = written(rng, row) if kind == "avro" else Written(arrow(rng), {}, True)
        body, attributes = sent.body, sent.attributes
        names = [f"{'good' if sent.good else 'unknown'} {kind}"] * 2
        name = rng.choice([*names, f"mutated {kind}", "random bytes", "empty"])
        if name.startswith("mutated"):
            body = mutated(rng, body)
        elif name in KINDS:
            body = KINDS[name](rng)
        elif sent.good and kind == "avro":
            features = [row[feature] for feature in FEATURES]
    if rng.random() < 0.1:
        name, encoding, body = packed(rng, body)
        attributes[rng.choice([ENCODING, ENCODING.title(), ENCODING.upper()])] = encoding
        features = features if name == "compressed" else None
    # Pub/Sub rejects a message without data and attributes, but another source may return one.
    return Sent(name, Message(body, attributes, f"m{number}", 1_700_000_000_000_000, ""), features)


def formats(manifest: Manifest) -> dict[MessageKind, MessageFormat]:
    """Return the format of the messages of each kind."""
    row_format = RowFormat(manifest, None, (), CARRIED)
    return {
        "json": MessageFormat(row_format),
        "avro": MessageFormat(row_format, "avro", REVISIONS),
        "arrow": MessageFormat(row_format, "arrow"),
    }


def sent_rows(messages: Sequence[Message], read: MessageFormat) -> dict[str, bytes]:
    """Return the rows of messages by their ids; Arrow messages count as one row."""
    ids: Sequence[str] = [message.message_id for message in messages]
    if read.kind == "json":
        messages, _, ids = split_rows(messages, read_bodies(messages, read.max_bytes))
    return {row_id: message.data for row_id, message in zip(ids, messages, strict=True)}


def outcomes(batch_sent: Sequence[Sent], read: MessageFormat, own: Provenance) -> Counter[str]:
    """Count what messages became. Raise AssertionError unless each is in exactly one place."""
    messages = [sent.message for sent in batch_sent]
    sure = {one.message.message_id: one.features for one in batch_sent if one.features is not None}
    batches, failures = decode_messages(messages, read, own, utc_now())
    manifest = read.row_format.manifest
    found: Counter[str] = Counter()
    rows = []
    for batch in batches:
        good, bad, faults = validate(batch, manifest)
        assert good.num_rows + bad.num_rows == batch.num_rows, "validation lost a row"
        check_features(good, sure)
        found += Counter(good=good.num_rows) + Counter(fault.reason for fault in faults)
        if read.kind == "arrow":
            rows += [row["message_id"] for row in batch.column("message").to_pylist()]
        else:
            rows += batch.column("row_id").to_pylist()
    letters = [] if failures is None else failures.to_pylist()
    lost = {letter["row_id"]: letter["reason"] for letter in letters if letter["row_id"] in sure}
    assert not lost, f"good messages are dead letters: {lost}"
    sent = sent_rows(messages, read)
    # A mutated Arrow stream may hold no row, or several.
    kept = set(rows) if read.kind == "arrow" else rows
    ids = [*kept, *(letter["row_id"] for letter in letters)]
    assert sorted(ids) == sorted(sent), (
        "the ids of rows and dead letters are not those of the messages"
    )
    assert all(sent[letter["row_id"]] == letter["payload"] for letter in letters), (
        "a dead letter has other bytes than its message"
    )
    return found + Counter(letter["reason"] for letter in letters)


def check_features(good: pa.RecordBatch, sure: Mapping[str, list[float]]) -> None:
    """Raise AssertionError if a row has other features than its message."""
    names = good.column("message").field("message_id").to_pylist()
    inputs = good.column("inputs").field(0).to_pylist()
    for name, features in zip(names, inputs, strict=True):
        expected = np.asarray(sure.get(name, features), np.float32).tolist()
        assert features == expected, f"expected the features {expected}, got {features}"


def decode_all(manifest: Manifest, count: int, seed: int) -> dict[str, Any]:
    """Decode random messages, and count their kinds and outcomes."""
    rng, own = random.Random(seed), Provenance.of(manifest, "fuzz", "fuzz")
    made: Counter[str] = Counter()
    found: Counter[str] = Counter()
    reading = formats(manifest)
    while (start := made.total()) < count:
        kind = rng.choices(list(reading), [8, 2, 1])[0]
        size = min(rng.choice(SIZES), count - start)
        batch = [any_message(rng, kind, start + i) for i in range(size)]
        made.update(sent.kind for sent in batch)
        try:
            found += outcomes(batch, reading[kind], own)
        except Exception as error:
            raise SystemExit(f"seed {seed}, messages from {start:,} on: {error!r}") from error
    return {"messages": made.total(), "kinds": dict(made), "outcomes": dict(found)}


def score_all(model: Path, manifest: Manifest, count: int, seed: int) -> dict[str, Any]:
    """Run random messages through the whole graph on FnApiRunner, and return the balance."""
    rng, own = random.Random(seed), Provenance.of(manifest, "fuzz", "fuzz")
    messages = [any_message(rng, "json", i).message for i in range(1, count + 1)]
    fields = choose_fields(manifest, stream=True)
    with tempfile.TemporaryDirectory() as folder:
        graph = ScoreStream(
            source=beam.Create([serialize(message) for message in messages], reshuffle=False),
            message_format=formats(manifest)["json"],
            handler=TorchModelHandler(str(model), manifest, outputs=fields.needed),
            manifest=manifest,
            fields=fields,
            provenance=own,
            schema=output_schema(fields, manifest, own, None),
            cloud=Cloud("no-project", Endpoints()),
            sinks=StreamSinks(folder=f"{folder}/scores", file_seconds=3_600),
            failure_sinks=StreamSinks(folder=f"{folder}/letters", file_seconds=3_600),
        )
        with beam.Pipeline("FnApiRunner") as pipeline:
            pipeline | graph
        scored = [i for p in Path(folder).glob("scores/*/*.parquet") for i in _ids(p)]
        texts = [path.read_text() for path in Path(folder).glob("letters/*/*.jsonl")]
    lines = [line for text in texts for line in text.splitlines()]
    letters = [json.loads(line)["row_id"] for line in lines]
    if sorted(scored + letters) != sorted(sent_rows(messages, formats(manifest)["json"])):
        raise SystemExit(
            f"seed {seed}: {count} messages, but {len(scored)} rows and {len(letters)} dead letters"
        )
    return {"messages": count, "scored": len(scored), "dead_letters": len(letters)}


def _ids(path: Path) -> list[str]:
    return pq.read_table(path, columns=["row_id"])["row_id"].to_pylist()  # type: ignore[no-any-return]


def main(argv: Sequence[str] | None = None) -> None:
    """Write stream_fuzz.json. Stop with an error at the first message that is lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("build/bench"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--messages", type=int, default=300_000)
    parser.add_argument("--graph_messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args(argv)
    args.workdir.mkdir(parents=True, exist_ok=True)
    model = Bench(args.workdir, ()).model()
    manifest = read_manifest(str(model)).choose("normalized_MAE")
    decoded = decode_all(manifest, args.messages, args.seed)
    print(f"{decoded['messages']:,} messages decoded, none lost: {decoded['outcomes']}", flush=True)
    graph = score_all(model, manifest, args.graph_messages, args.seed)
    print(f"{graph['messages']:,} messages through the whole graph: {graph}")
    results = {"seed": args.seed, "decoded": decoded, "graph": graph}
    write_results(
        args.output / "stream_fuzz.json", {"method": METHOD, "environment": {}}, results, 1
    )


if __name__ == "__main__":
    main()
