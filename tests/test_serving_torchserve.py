"""The .mar of the example in real TorchServe, as in Google's pre-built container."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from same_scores import assert_scores
from serving_client import running

from cloud.vertex import EndpointAddress
from examples.transactions.data import FEATURES
from examples.transactions.model import OUTPUTS
from examples.transactions.torchserve import (
    CONFIG,
    INSTALL_COMMAND,
    is_installed,
    torchserve,
)
from model_handlers.endpoints.codec import InstanceFormat
from model_handlers.endpoints.handler import VertexEndpointHandler
from model_handlers.package import read_manifest
from model_handlers.torch_model import TorchModelHandler
from transforms.validate import validate

ROWS = np.random.default_rng(5).normal(size=(20, 30)).tolist()


def test_it_listens_only_on_this_machine_and_offers_no_management() -> None:
    lines = [line for line in CONFIG.read_text().splitlines() if not line.startswith("#")]
    config = dict(line.split("=", 1) for line in lines)
    assert config["inference_address"].startswith("http://127.0.0.1:")
    assert config["management_address"].startswith("unix:")
    assert config["metrics_address"].startswith("unix:")
    assert {v for k, v in config.items() if k.startswith("grpc")} == {"127.0.0.1"}
    assert config["enable_model_api"] == "false"


@pytest.fixture(scope="module")
def url(example: Path) -> Iterator[str]:
    if not is_installed():
        # TorchServe is not one of the emulators: only its own variable makes it required.
        wanted = os.environ.get("TORCHSERVE") == "true"
        (pytest.fail if wanted else pytest.skip)(f"TorchServe is not installed: {INSTALL_COMMAND}")
    with torchserve(example / "pytorch_autoencoder.mar") as found:
        yield found


def test_it_answers_like_the_server_of_millrace(url: str, example: Path) -> None:
    named = [dict(zip(FEATURES, row, strict=True)) for row in ROWS]
    with running(example / "model", outputs="all") as server:
        for instances in (ROWS, named, ROWS[:1]):
            theirs = requests.post(url, json={"instances": instances}, timeout=60)
            ours = server.client.predict(instances).json["predictions"]
            assert theirs.status_code == 200
            predictions = theirs.json()["predictions"]
            assert len(predictions) == len(ours) == len(instances)
            for their, our in zip(predictions, ours, strict=True):
                assert list(their) == list(our) == [name for name, _ in OUTPUTS]
                for name in our:
                    assert_scores(our[name], their[name], name)


def test_a_bad_row_fails_the_request(url: str) -> None:
    # TorchServe answers every error of a handler with this status, without a reason.
    answer = requests.post(url, json={"instances": [ROWS[0][:3]]}, timeout=60)
    assert answer.status_code == 503
    assert answer.json()["message"] == "Prediction failed"


def test_the_endpoint_handler_gets_the_outputs_of_a_worker_from_it(
    url: str, example: Path, make_source: Any
) -> None:
    manifest = read_manifest(str(example / "model"))
    source = make_source(dict(zip(FEATURES, zip(*ROWS, strict=True), strict=True)))
    batch, _, _ = validate(source, manifest)
    local = TorchModelHandler(str(example / "model"), manifest)
    (wanted,) = local.run_inference([batch], local.load_model())
    formats: tuple[InstanceFormat, ...] = ("list", "named")
    for instance_format in formats:
        handler = VertexEndpointHandler(
            EndpointAddress(url=url), manifest, instance_format=instance_format
        )
        endpoint = handler.load_model()
        endpoint.check()
        (got,) = handler.run_inference([batch], endpoint)
        endpoint.client.close()
        assert got.column("error").null_count == len(ROWS)
        for name, _ in OUTPUTS:
            theirs, ours = (
                np.array(one.column("outputs").field(name).to_pylist()) for one in (got, wanted)
            )
            assert_scores(theirs, ours, name)
