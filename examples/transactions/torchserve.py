"""Serve the example's .mar with TorchServe, only on this machine, with all 13 outputs.

python -m examples.transactions.torchserve --mar build/example/pytorch_autoencoder.mar

`make torchserve` installs TorchServe under .torchserve, where it uses the torch of .venv. It needs
Java.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from examples.local_cloud import Server, free_port

INSTALLED = Path(__file__).parent.parent.parent / ".torchserve"
INSTALL_COMMAND = "make .torchserve/.installed"
CONFIG = Path(__file__).parent / "config.properties"
MODEL = "pytorch-autoencoder"


def is_installed() -> bool:
    """Return whether TorchServe and Java are installed."""
    return (INSTALLED / ".installed").exists() and shutil.which("java") is not None


@contextmanager
def torchserve(mar: Path, port: int = 0, workers: int = 1) -> Iterator[str]:
    """Run TorchServe with a .mar until the block ends.

    Args:
        mar: The path of the .mar.
        port: The port; 0 picks a free one.
        workers: The number of worker processes.

    Yields:
        The URL for predictions.

    Raises:
        RuntimeError: If TorchServe does not start.
    """
    # Java is started without TorchServe's own launcher. The launcher allows only one server per
    # machine, and leaves the server running when it is stopped itself.
    with tempfile.TemporaryDirectory(prefix="torchserve-") as name:
        folder, port = Path(name), port or free_port()
        address = f"http://127.0.0.1:{port}"
        ours = {
            "inference_address": address,
            "management_address": f"unix:{folder}/management.sock",
            "metrics_address": f"unix:{folder}/metrics.sock",
            "grpc_inference_port": free_port(),
            "grpc_management_port": free_port(),
            "default_workers_per_model": workers,
        }
        # If a key occurs twice in the file, the last value counts.
        lines = "".join(f"{key}={value}\n" for key, value in ours.items())
        (folder / "config.properties").write_text(f"{CONFIG.read_text()}\n{lines}")
        (folder / "store").mkdir()
        shutil.copy(mar, folder / "store" / mar.name)
        (packages,) = INSTALLED.glob("lib/python3*/site-packages")
        server = Server(
            f"java -Dmodel_server_home={packages} -Djava.io.tmpdir={folder} "
            f"-cp {packages}/ts/frontend/* org.pytorch.serve.ModelServer "
            f"--python {INSTALLED}/bin/python -f {folder}/config.properties "
            f"-s {folder}/store -m {mar.name} -ncs",
            f"{address}/ping",
            folder / "torchserve.log",
            {
                "LOG_LOCATION": f"{folder}/logs",
                "METRICS_LOCATION": f"{folder}/logs",
                # With more threads, the workers would compete for the cores.
                "OMP_NUM_THREADS": "1",
            },
        )
        server.start()
        try:
            yield f"{address}/predictions/{MODEL}"
        finally:
            server.stop()


def main(argv: list[str] | None = None) -> None:
    """Run TorchServe until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--mar",
        type=Path,
        default=Path("build/example/pytorch_autoencoder.mar"),
        help="the .mar to serve (default: build/example/pytorch_autoencoder.mar)",
    )
    parser.add_argument(
        "--port", type=int, default=8085, help="port; 0 picks a free one (default: 8085)"
    )
    parser.add_argument("--workers", type=int, default=1, help="worker processes (default: 1)")
    args = parser.parse_args(argv)
    with torchserve(args.mar, args.port, args.workers) as url:
        print(f"POST {{'instances': [...]}} to {url}; Ctrl-C stops the server", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
