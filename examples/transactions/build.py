"""Build the example: transactions to score, a trained model, and its packages.

python -m examples.transactions.build --output build/example

    transactions.parquet      rows to score, 1 % of them faulty
    training.parquet          rows on which the model was trained
    model/                    the package: model.json and a TorchScript model.pt
    model_pt2/                a package of the same model in the format of torch.export
    pytorch_autoencoder.mar   the same model for TorchServe
    detection.json            figures on how well the model detects fraud
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from examples.transactions import torchserve_handler
from examples.transactions.data import FEATURES, write_parquet
from examples.transactions.model import OUTPUTS, TransactionAutoencoder
from examples.transactions.train import detection_report, read_table, sound_rows, train
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from model_handlers.packaging.golden import GOLDEN_ROWS, OTHER_ROWS, with_golden_rows
from model_handlers.packaging.statistics import describe_features
from model_handlers.write_package import write_mar, write_package


def to_torchscript(model: torch.nn.Module) -> bytes:
    """Return a module as the bytes of a TorchScript file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # TorchScript is deprecated, but most deployed models still use it.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(model), buffer)
    return buffer.getvalue()


def to_pt2(model: torch.nn.Module) -> bytes:
    """Return a module as the bytes of a torch.export file that takes any number of rows."""
    buffer = io.BytesIO()
    batch = torch.export.Dim("batch")
    rows = torch.zeros(2, len(FEATURES))
    torch.export.save(torch.export.export(model, (rows,), dynamic_shapes=({0: batch},)), buffer)
    return buffer.getvalue()


def build_packages(model: TransactionAutoencoder, table_path: Path, folder: Path) -> None:
    """Write the three packages of a trained model to a folder.

    Args:
        model: The trained model.
        table_path: The Parquet file of its training rows, from which the manifest takes the
            statistics of the features and the known-good rows.
        folder: The folder for the packages.
    """
    features, _ = sound_rows(read_table(table_path), "TRAIN")
    for name, file, save in (
        ("model", "model.pt", to_torchscript),
        ("model_pt2", "model.pt2", to_pt2),
    ):
        data, manifest = make_manifest(model, file, save)
        manifest = replace(manifest, statistics=describe_features(FEATURES, features))
        golden, others = features[:GOLDEN_ROWS], features[GOLDEN_ROWS:][:OTHER_ROWS]
        manifest = with_golden_rows(
            data, manifest, {"transaction": golden}, {"transaction": others}
        )
        write_package(folder / name, data, manifest)
        if file == "model.pt":
            handler = Path(torchserve_handler.__file__).read_text()
            write_mar(folder / "pytorch_autoencoder.mar", data, manifest, handler)


def make_manifest(
    model: TransactionAutoencoder, file: str, save: Callable[[torch.nn.Module], bytes]
) -> tuple[bytes, Manifest]:
    """Return the bytes of a model file and its manifest.

    The score is denormalized_MAE, as in the reference implementation. Most of it is the error of
    the feature `Time`. To detect fraud, choose normalized_MAE.

    Args:
        model: The trained model.
        file: The name of the model file.
        save: A function that returns the model as bytes.
    """
    data = save(model)
    return data, Manifest(
        name="pytorch-autoencoder",
        version="1.0.0",
        format="pt2" if file.endswith(".pt2") else "torchscript",
        file=file,
        sha256=hashlib.sha256(data).hexdigest(),
        inputs=(InputSpec("transaction", FEATURES, shape=(len(FEATURES),)),),
        outputs=tuple(OutputSpec(name, shape=shape) for name, shape in OUTPUTS),
        score_output="denormalized_MAE",
        output_fields=("encoded",),
    )


def build(folder: Path, *, rows: int, train_rows: int, seed: int) -> None:
    """Build the whole example in a folder.

    Args:
        folder: The folder, which is created if needed.
        rows: The number of rows to score.
        train_rows: The number of rows to train on.
        seed: The seed of the rows and the training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    training = folder / "training.parquet"
    write_parquet(training, train_rows, seed=seed)
    write_parquet(folder / "transactions.parquet", rows, seed=seed + 1, fault_share=0.01)
    model = train(training, seed=seed)
    report = detection_report(model, read_table(training))
    (folder / "detection.json").write_text(json.dumps(report, indent=1) + "\n")
    build_packages(model, training, folder)


def ensure_example(folder: Path) -> None:
    """Build the example of the demos in a folder, unless it exists."""
    if not (folder / "model_pt2" / "model.json").exists():
        print("making 200,000 transactions and training the autoencoder ...", flush=True)
        build(folder, rows=200_000, train_rows=100_000, seed=7)


def main(argv: list[str] | None = None) -> None:
    """Build the example in the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/example"),
        help="folder for the example (default: build/example)",
    )
    parser.add_argument(
        "--rows", type=int, default=200_000, help="number of rows to score (default: 200000)"
    )
    parser.add_argument(
        "--train_rows",
        type=int,
        default=100_000,
        help="number of rows to train on (default: 100000)",
    )
    parser.add_argument(
        "--seed", type=int, default=7, help="seed of the rows and the training (default: 7)"
    )
    args = parser.parse_args(argv)
    build(args.output, rows=args.rows, train_rows=args.train_rows, seed=args.seed)
    print(f"built {args.output}: transactions.parquet, model/, model_pt2/, pytorch_autoencoder.mar")


if __name__ == "__main__":
    main()
