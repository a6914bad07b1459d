"""The handler in the .mar accepts TorchServe's forms of a row and returns all 13 outputs."""

import importlib.util
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from same_scores import assert_predictions, assert_scores

from examples.transactions.data import FEATURES
from examples.transactions.model import OUTPUTS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def handler(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The handler of the unpacked archive, loaded as TorchServe loads it."""
    folder = tmp_path_factory.mktemp("mar")
    with zipfile.ZipFile(example / "pytorch_autoencoder.mar") as archive:
        archive.extractall(folder)
    spec = importlib.util.spec_from_file_location("packed_handler", folder / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded = module.TransactionHandler()
    loaded.initialize(SimpleNamespace(system_properties={"model_dir": str(folder)}))
    return loaded


ROW = [float(i) for i in range(30)]
NAMED = dict(zip(FEATURES, ROW, strict=True))


@pytest.mark.parametrize(
    "request_row",
    [
        ROW,
        NAMED,
        {"body": ROW},
        {"data": NAMED},
        {"body": json.dumps(ROW).encode()},
        {"data": bytearray(json.dumps(NAMED).encode())},
        {"body": dict(reversed(NAMED.items()))},
    ],
    ids=lambda row: f"{type(row).__name__}-{str(row)[:12]}",
)
def test_every_form_of_a_row_gets_the_models_outputs(
    handler: Any, example: Path, request_row: Any
) -> None:
    (answer,) = handler.handle([request_row], None)
    assert list(answer) == [name for name, _ in OUTPUTS]
    with torch.inference_mode():
        expected = torch.jit.load(example / "model/model.pt")(torch.tensor([ROW]))
    for name, shape in OUTPUTS:
        assert np.shape(answer[name]) == shape
        assert_scores(answer[name], expected[name][0], name)


def test_a_batch_is_answered_in_order(handler: Any) -> None:
    other = [value + 1 for value in ROW]
    both = handler.handle([ROW, other], None)
    for row, answer in zip((ROW, other), both, strict=True):
        assert_predictions(answer, handler.handle([row], None)[0])


def test_a_request_that_is_not_a_row_is_a_value_error(handler: Any) -> None:
    incomplete = {name: value for name, value in NAMED.items() if name != "V3"}
    with pytest.raises(ValueError, match="missing features: V3"):
        handler.handle([{"body": incomplete}], None)
    with pytest.raises(ValueError, match="expected 30 features"):
        handler.handle([ROW[:29]], None)
    with pytest.raises(ValueError, match="expected 30 features"):
        handler.handle([{"data": b'"text"'}], None)
