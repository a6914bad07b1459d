"""The 13 outputs of the autoencoder follow the formulas, in eager mode, script and export."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from same_scores import assert_scores
from torch import Tensor

from examples.transactions.data import FEATURES
from examples.transactions.model import OUTPUTS, TransactionAutoencoder

Floats = npt.NDArray[np.float64]

NAMES = [name for name, _ in OUTPUTS]


@pytest.fixture
def model() -> TransactionAutoencoder:
    torch.manual_seed(11)
    mean = torch.linspace(-3, 90, len(FEATURES))
    variance = torch.logspace(-1, 4, len(FEATURES))
    return TransactionAutoencoder(mean, variance).eval()


def transactions(rows: int) -> Tensor:
    """Return rows on the scale of the fixture's statistics, with zeros and negative values."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, len(FEATURES), generator=generator) * torch.logspace(-1, 2, len(FEATURES))
    x[:, 0] = 0.0
    return x


def layers(weights: dict[str, Floats], part: str, x: Floats, last: str) -> Floats:
    """Apply each dense layer of `part`, with ReLU after all but `last`."""
    names = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    for name in (name for name in names if name.startswith(part)):
        x = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        x = x if name == last else np.maximum(x, 0)
    return x


def log_error(value: Floats, reconstruction: Floats) -> Floats:
    difference = np.log(1 + np.maximum(reconstruction, 0)) - np.log(1 + np.maximum(value, 0))
    mean: Floats = (difference**2).mean(axis=1)
    return mean


def naive(model: TransactionAutoencoder, rows: Tensor) -> dict[str, Floats]:
    """Compute the 13 outputs by their formulas, in numpy and float64."""
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    x = rows.double().numpy()
    scale = np.sqrt(weights["variance"] + 1e-7)
    xn = (x - weights["mean"]) / scale
    encoded = layers(weights, "encoder", xn, last="")
    rn = layers(weights, "decoder", encoded, last="decoder.6")
    rd = rn * scale + weights["mean"]
    return {
        "normalized_reconstruction": rn,
        "normalized_reconstruction_errors": xn - rn,
        "normalized_MAE": np.abs(xn - rn).mean(axis=1),
        "normalized_RMSE": np.sqrt(((xn - rn) ** 2).mean(axis=1)),
        "normalized_MSE": ((xn - rn) ** 2).mean(axis=1),
        "normalized_MSLE": log_error(xn, rn),
        "denormalized_reconstruction": rd,
        "denormalized_reconstruction_errors": x - rd,
        "denormalized_MAE": np.abs(x - rd).mean(axis=1),
        "denormalized_RMSE": np.sqrt(((x - rd) ** 2).mean(axis=1)),
        "denormalized_MSE": ((x - rd) ** 2).mean(axis=1),
        "denormalized_MSLE": log_error(x, rd),
        "encoded": encoded,
    }


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected) == NAMES
    for name in NAMES:
        assert_scores(actual[name].detach(), expected[name].detach(), name)


def scripted(model: TransactionAutoencoder) -> Callable[[Tensor], dict[str, Tensor]]:
    return torch.jit.script(model)


def exported(model: TransactionAutoencoder) -> Callable[[Tensor], dict[str, Tensor]]:
    shapes = {"x": {0: torch.export.Dim("rows")}}
    return torch.export.export(model, (transactions(3),), dynamic_shapes=shapes).module()


def test_the_model_has_the_expected_parameters_and_buffers() -> None:
    model = TransactionAutoencoder()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 1_362
    assert [name for name, _ in model.named_buffers()] == ["mean", "variance"]


@pytest.mark.parametrize("rows", [0, 1, 6])
def test_outputs_have_the_declared_names_shapes_and_dtypes(
    model: TransactionAutoencoder, rows: int
) -> None:
    outputs = model(transactions(rows))
    shapes = tuple((name, tuple(value.shape)) for name, value in outputs.items())
    assert shapes == tuple((name, (rows, *shape)) for name, shape in OUTPUTS)
    assert {value.dtype for value in outputs.values()} == {torch.float32}


def test_outputs_follow_the_formulas(model: TransactionAutoencoder) -> None:
    x = transactions(64)
    outputs, expected = model(x), naive(model, x)
    assert list(outputs) == list(expected)
    for name, values in expected.items():
        assert_scores(outputs[name].detach(), values, name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", [scripted, exported])
def test_script_and_export_equal_eager_mode(
    model: TransactionAutoencoder,
    form: Callable[[TransactionAutoencoder], Callable[[Tensor], dict[str, Tensor]]],
) -> None:
    compiled = form(model)
    for rows in (1, 2, 3, 57):
        assert_same(compiled(transactions(rows)), model(transactions(rows)))


def test_a_state_dict_restores_a_model_created_with_the_defaults(
    model: TransactionAutoencoder,
) -> None:
    restored = TransactionAutoencoder()
    restored.load_state_dict(model.state_dict())
    assert_same(restored.eval()(transactions(9)), model(transactions(9)))


def test_normalized_values_have_unit_scale_and_the_inverse_restores_the_values() -> None:
    x = transactions(500)
    model = TransactionAutoencoder(x.mean(dim=0), x.var(dim=0, correction=0))
    xn = model.normalize(x)
    torch.testing.assert_close(xn.mean(dim=0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        xn[:, 1:].var(dim=0, correction=0), torch.ones(29), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(model.denormalize(xn), x, atol=1e-4, rtol=1e-5)


def test_a_constant_feature_stays_finite() -> None:
    x = transactions(4)
    model = TransactionAutoencoder(x.mean(dim=0), [0.0] * 30).eval()
    assert all(bool(torch.isfinite(value).all()) for value in model(x).values())


def test_the_time_makes_up_most_of_the_denormalized_error() -> None:
    mean, variance = [94_896.0, *[0.0] * 28, 88.4], [47_498.0**2, *[1.0] * 28, 254.0**2]
    model = TransactionAutoencoder(mean, variance).eval()
    x = torch.tensor(mean) + torch.randn(200, 30) * torch.tensor(variance).sqrt()
    errors = model(x)["denormalized_reconstruction_errors"].detach().abs().mean(dim=0)
    assert float(errors[0] / errors.sum()) > 0.98


def test_dropout_is_off_in_eval_mode(model: TransactionAutoencoder) -> None:
    x = transactions(20)
    assert_same(model(x), model(x))
    model.train()
    assert not torch.equal(model(x)["encoded"], model(x)["encoded"])


@pytest.mark.parametrize("mean", [[0.0] * 29, [float("nan")] * 30, torch.zeros(1, 30)])
def test_statistics_that_do_not_fit_are_refused(mean: list[float] | Tensor) -> None:
    with pytest.raises(ValueError, match="expected 30 finite numbers as mean"):
        TransactionAutoencoder(mean)


def test_negative_variance_is_refused() -> None:
    with pytest.raises(ValueError, match="expected variances from 0, got -1"):
        TransactionAutoencoder(variance=[-1.0] * 30)
