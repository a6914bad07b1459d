"""Compares the cost of a message, from its bytes to the JSON of its score, with stock Beam.

python -m benchmarks.stream.core --output benchmarks/results

The same serialized PubsubMessages pass through both on FnApiRunner, in batches of 1, 10, 100 and
1,000 messages, like the bundles of a streaming runner. Two of the model's 13 outputs are written.
Stock Beam runs twice: with the complete model, and with the model that Millrace has cut to these
two outputs. `plain_rows` is what Millrace would cost without record batches, but also without
most of what it does. The cost of a pipeline that only passes messages on is also measured, and
subtracted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
import torch
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.contestant import LATENT_OUTPUT, SCORE_OUTPUT
from benchmarks.cpu_clock import CPU_SECONDS, CpuClock
from benchmarks.machine import describe_machine, versions
from benchmarks.stream.plain_rows import PlainRows
from benchmarks.summary import spread
from benchmarks.two_outputs import load_two_outputs
from common.json_objects import json_objects
from examples.transactions.build import build
from examples.transactions.data import FEATURES, write_parquet
from model_handlers.manifests.tolerance import TOLERANCE
from model_handlers.package import read_manifest
from model_handlers.torch_model import TorchModelHandler
from transforms.chain import Each
from transforms.encode import EncodeRows
from transforms.json_rows.row_format import RowFormat
from transforms.messages.decode import MESSAGE_BYTES, DecodeDoFn, MessageFormat
from transforms.messages.message import Message, serialize
from transforms.output_fields import OutputFields, choose_fields
from transforms.predict import PredictBetween
from transforms.provenance import Provenance
from transforms.row_schemas import CARRIED

SIZES = (1, 10, 100, 1_000)
OPTIONS = ("--direct_num_workers=1",)
Step = Callable[[beam.PCollection], beam.PCollection]


def make_messages(path: Path, count: int) -> list[bytes]:
    """Return the first rows of a Parquet file of transactions as serialized PubsubMessages."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path, columns=list(FEATURES)).slice(0, count).to_pylist()
    return [
        serialize(
            Message(json.dumps(row).encode(), {}, str(i), 1_700_000_000_000_000 + 137 * i, "")
        )
        for i, row in enumerate(rows)
    ]


def _handler(model: Path, size: int) -> tuple[TorchModelHandler, OutputFields]:
    """Return the handler of the model of a package, and the fields of a row."""
    manifest = read_manifest(str(model)).choose(SCORE_OUTPUT)
    fields = choose_fields(manifest, [LATENT_OUTPUT], stream=True)
    handler = TorchModelHandler(str(model), manifest, outputs=fields.needed, batch_rows=size)
    return handler, fields


def ours(model: Path, size: int) -> Step:
    """Return the step of Millrace from messages to the JSON of their scores."""
    handler, fields = _handler(model, size)
    manifest = handler.manifest
    provenance = Provenance.of(manifest, "bench", "bench")
    read = MessageFormat(RowFormat(manifest, None, (), CARRIED))

    def step(messages: beam.PCollection) -> beam.PCollection:
        decode = DecodeDoFn(read, provenance, size, MESSAGE_BYTES)
        encode = Each(EncodeRows(fields, provenance).encode)
        rows, *_ = messages | PredictBetween(
            handler, manifest, provenance, before=[decode], after=[encode]
        )
        return rows | "Json" >> beam.FlatMap(json_objects)

    return step


def plain(model: Path, size: int) -> Step:
    """Return the same step with plain rows instead of record batches."""
    handler, _ = _handler(model, size)
    provenance = Provenance.of(handler.manifest, "bench", "bench")
    return lambda messages: messages | beam.ParDo(PlainRows(handler, provenance, size))


def stock(script: Path, size: int) -> Step:
    """Return the same step in the form of Beam's documentation."""
    handler = PytorchModelHandlerTensor(
        torch_script_model_path=str(script), min_batch_size=size, max_batch_size=size
    )

    def to_tensor(raw: bytes) -> tuple[str, torch.Tensor]:
        message = PubsubMessage._from_proto_str(raw)
        row = json.loads(message.data)
        features = np.fromiter((row[name] for name in FEATURES), np.float32, len(FEATURES))
        return message.message_id, torch.from_numpy(features)

    def to_json(keyed: tuple[str, PredictionResult]) -> bytes:
        row_id, result = keyed
        row = {
            "row_id": row_id,
            "score": result.inference[SCORE_OUTPUT].item(),
            LATENT_OUTPUT: result.inference[LATENT_OUTPUT].tolist(),
        }
        return json.dumps(row).encode()

    def step(messages: beam.PCollection) -> beam.PCollection:
        return (
            messages
            | "Tensor" >> beam.Map(to_tensor)
            | RunInference(KeyedModelHandler(handler))
            | "Json" >> beam.Map(to_json)
        )

    return step


def passed_on(messages: beam.PCollection) -> beam.PCollection:
    """Pass messages on."""
    return messages | "Pass" >> beam.Map(lambda raw: raw)


def run(messages: Sequence[bytes], step: Step, keep: Path | None = None) -> float:
    """Run a step on the messages, and return the CPU seconds of their only bundle.

    Args:
        messages: The serialized messages.
        step: The step.
        keep: A file for the results, for the gate. None to drop them.
    """
    CPU_SECONDS.clear()
    with beam.Pipeline("FnApiRunner", PipelineOptions(OPTIONS)) as pipeline:
        source = pipeline | beam.Create(list(messages), reshuffle=False)
        started = source | "Begin" >> beam.ParDo(CpuClock(at_end=False))
        results = started | "Step" >> _Apply(step) | "End" >> beam.ParDo(CpuClock(at_end=True))
        if keep is not None:
            results | beam.io.WriteToText(str(keep), shard_name_template="", coder=_Bytes())
    start, end = CPU_SECONDS
    return end - start


class _Apply(beam.PTransform):
    """A function of PCollections as a PTransform."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self._step = step

    def expand(self, messages: beam.PCollection) -> beam.PCollection:
        """Apply the function."""
        return self._step(messages)


class _Bytes(beam.coders.BytesCoder):  # type: ignore[misc]
    """Writes lines of bytes unchanged."""


def scores(path: Path) -> dict[str, float]:
    """Return the scores in a file of results, by row id."""
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    return {row["row_id"]: row["score"] for row in rows}


def gate(messages: Sequence[bytes], steps: Mapping[str, Step], folder: Path) -> None:
    """Raise SystemExit unless all steps return the same scores for the same ids."""
    found = {}
    for name, step in steps.items():
        run(messages, step, folder / name)
        found[name] = scores(folder / name)
    first, *others = found.values()
    for other in others:
        if first.keys() != other.keys() or len(first) != len(messages):
            raise SystemExit("gate: ids differ")
        if not TOLERANCE.agree([other[i] for i in first], list(first.values())).all():
            raise SystemExit(f"gate: scores differ beyond {TOLERANCE}")


def measure(
    messages: Sequence[bytes], steps: Mapping[str, Step], rounds: int
) -> dict[str, dict[str, float]]:
    """Return the microseconds of CPU per message of each contestant."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            found[name].append(run(messages, step) / len(messages) * 1e6)
    base = statistics.median(found.pop("passed_on"))
    return {name: spread([value - base for value in values]) for name, values in found.items()}


def compare(folder: Path, everything: Sequence[bytes], size: int, rounds: int) -> dict[str, Any]:
    """Compare the contestants at one number of messages per batch."""
    # Larger batches get more messages, so the extra cost of the first batches does not matter.
    messages = (list(everything) * 5)[: len(everything) * min(size, 25) // 5]
    steps = contestants(folder, size, size)
    gate(everything[:2_000], steps, folder)
    found = measure(messages, {**steps, "passed_on": passed_on}, rounds)
    own = found["millrace"]["median"]
    others = {name: costs["median"] for name, costs in found.items() if name != "millrace"}
    ratios = {name: round(cost / own, 2) for name, cost in others.items()}
    text = "; ".join(f"{name} {cost:.1f}, {ratios[name]} times" for name, cost in others.items())
    print(f"{size:>5} per batch: {own:8.1f} us per message; {text}", flush=True)
    return {"messages_a_batch": size, **found, "ratios": ratios}


def prepare(folder: Path, count: int) -> list[bytes]:
    """Write both models into a folder, and return messages."""
    build(folder, rows=100, train_rows=5_000, seed=11)
    write_parquet(folder / "rows.parquet", count, seed=11, fault_share=0.0)
    load_two_outputs(folder / "model" / "model.pt").save(str(folder / "two.pt"))
    return make_messages(folder / "rows.parquet", count)


def contestants(folder: Path, batch_rows: int, size: int) -> dict[str, Step]:
    """Return the steps to compare, with the models that `prepare` wrote.

    Args:
        folder: The folder of the models.
        batch_rows: The most messages of a batch of Millrace.
        size: The messages of a batch of the other steps.
    """
    return {
        "millrace": ours(folder / "model", batch_rows),
        "plain_rows": plain(folder / "model", size),
        "stock_beam": stock(folder / "model" / "model.pt", size),
        "stock_beam_cut_model": stock(folder / "two.pt", size),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Write stream_core.json, again after each size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    args.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "unit": "microseconds of CPU a message",
        "rounds": args.rounds,
        "versions": versions(),
        "machine": describe_machine(),
        "sizes": [],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        everything = prepare(folder, args.messages)
        for size in args.sizes:
            results["sizes"].append(compare(folder, everything, size, args.rounds))
            text = json.dumps(results, indent=1)
            (args.output / "stream_core.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
