"""Tests that ordinary TorchScript models load and are not mistaken for attacks."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_formats import load, script
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn import functional

pytestmark = pytest.mark.filterwarnings("ignore")

ROW = torch.linspace(-2, 3, 24).reshape(4, 6)
SEQUENCE = torch.linspace(-2, 3, 96).reshape(2, 8, 6)
IMAGES = {d: torch.linspace(-2, 3, 12 * 8**d).reshape(2, 6, *[8] * d) for d in (1, 2, 3)}
CLASSES = torch.tensor([1, 2, 3, 4])
WORDS = torch.tensor([[1, 2], [3, 4]])

# For each class: its arguments, then its input tensors.
MODULES: dict[str, tuple[Any, ...]] = {
    "Linear": ((6, 3), ROW),
    "Bilinear": ((6, 6, 3), ROW, ROW),
    "Embedding": ((10, 4), WORDS),
    "EmbeddingBag": ((10, 4), WORDS),
    "LayerNorm": ((6,), ROW),
    "RMSNorm": ((6,), ROW),
    "GroupNorm": ((2, 6), IMAGES[2]),
    "LocalResponseNorm": ((2,), IMAGES[2]),
    "MultiheadAttention": ((6, 2), SEQUENCE, SEQUENCE, SEQUENCE),
    "LSTM": ((6, 4), SEQUENCE),
    "GRU": ((6, 4), SEQUENCE),
    "RNN": ((6, 4), SEQUENCE),
    "LSTMCell": ((6, 4), ROW),
    "GRUCell": ((6, 4), ROW),
    "RNNCell": ((6, 4), ROW),
    "PixelShuffle": ((1,), IMAGES[2]),
    "PixelUnshuffle": ((2,), IMAGES[2]),
    "ChannelShuffle": ((2,), IMAGES[2]),
    "Fold": (((4, 4), (2, 2)), torch.ones(1, 8, 9)),
    "Unfold": (((2, 2),), IMAGES[2]),
    "Flatten": ((), IMAGES[2]),
    "Unflatten": ((1, (2, 3)), ROW),
    "Upsample": ((None, 2), IMAGES[2]),
    "UpsamplingBilinear2d": ((None, 2), IMAGES[2]),
    "UpsamplingNearest2d": ((None, 2), IMAGES[2]),
    "CosineSimilarity": ((), ROW, ROW + 1),
    "PairwiseDistance": ((), ROW, ROW + 1),
    "Softmax": ((1,), ROW),
    "LogSoftmax": ((1,), ROW),
    "Softmin": ((1,), ROW),
    "Softmax2d": ((), IMAGES[2]),
    "Threshold": ((0.1, 0.2), ROW),
    "Transformer": ((6, 2, 1, 1, 16), SEQUENCE, SEQUENCE),
    "TransformerEncoderLayer": ((6, 2, 16), SEQUENCE),
    "TransformerDecoderLayer": ((6, 2, 16), SEQUENCE, SEQUENCE),
    "AdaptiveLogSoftmaxWithLoss": ((6, 20, [5, 10]), ROW, torch.tensor([1, 6, 11, 3])),
    "CTCLoss": (
        (),
        SEQUENCE.log_softmax(2),
        torch.tensor([[1, 2]] * 8),
        torch.full((8,), 2),
        torch.ones(8, dtype=torch.long),
    ),
    "BCELoss": ((), ROW.sigmoid(), ROW.sigmoid()),
    "NLLLoss": ((), ROW.log_softmax(1), CLASSES),
    "CrossEntropyLoss": ((), ROW, CLASSES),
    "MultiMarginLoss": ((), ROW, CLASSES),
    "MultiLabelMarginLoss": ((), ROW, torch.zeros(4, 6, dtype=torch.long)),
    "CosineEmbeddingLoss": ((), ROW, ROW, torch.ones(4)),
    "MarginRankingLoss": ((), ROW, ROW, torch.ones(4, 6)),
    "TripletMarginLoss": ((), ROW, ROW, ROW),
    "TripletMarginWithDistanceLoss": ((), ROW, ROW, ROW),
    "GaussianNLLLoss": ((), ROW, ROW, ROW.abs()),
    "LinearCrossEntropyLoss": ((6, 5), ROW, CLASSES),
}
for d, images in IMAGES.items():
    pools = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[d](
        images, 2, return_indices=True
    )
    MODULES |= {
        f"Conv{d}d": ((6, 4, 3), images),
        f"ConvTranspose{d}d": ((6, 4, 3), images),
        f"BatchNorm{d}d": ((6,), images),
        f"InstanceNorm{d}d": ((6,), images),
        f"LPPool{d}d": ((2, 2), images),
        f"FractionalMaxPool{d}d": ((2, 4), images),
        f"ConstantPad{d}d": ((1, 0.5), images),
        f"MaxUnpool{d}d": ((2,), *pools),
    }
    for kind in ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool"):
        MODULES[f"{kind}{d}d"] = ((2,), images)
    for kind in ("ReflectionPad", "ReplicationPad", "ZeroPad", "CircularPad"):
        MODULES[f"{kind}{d}d"] = ((1,), images)
# Containers and base classes have nothing to run. Modules that call Python or use several machines
# cannot be scripted.
LEFT_OUT = {"CrossMapLRN2d", "DataParallel", "SyncBatchNorm", "NLLLoss2d", "Container", "Module"}
LEFT_OUT |= {"ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "RNNBase", "RNNCellBase"}
LEFT_OUT |= {"TransformerDecoder", "TransformerEncoder", "Buffer", "Sequential"}
# Modules that are random, or that have no forward once scripted because callers choose an overload.
LOADED_ALONE = {"FractionalMaxPool2d", "FractionalMaxPool3d", "LSTM", "GRU", "RNN"}
NAMES = [
    name
    for name, value in vars(nn).items()
    if isinstance(value, type) and issubclass(value, nn.Module) and not name.startswith("Lazy")
    and name not in LEFT_OUT
]  # fmt: skip


def saved(module: Any) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


def traced(module: nn.Module, *example: Tensor) -> bytes:
    return saved(torch.jit.trace(module.eval(), example, check_trace=False, strict=False))


def frozen(module: nn.Module, *_: Tensor) -> bytes:
    return saved(torch.jit.freeze(torch.jit.script(module.eval())))


WAYS: dict[str, Callable[..., bytes]] = {
    "traced": traced,
    "scripted": lambda module, *_: script(module),
    "frozen": frozen,
}
# torch itself cannot script the first of these groups, and can neither trace nor script the other.
TRACED_ALONE = {"AdaptiveLogSoftmaxWithLoss", "GaussianNLLLoss", "LinearCrossEntropyLoss"}
TRACED_ALONE |= {"TripletMarginWithDistanceLoss"}
NEITHER = {"MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d"}


def check_loads(
    data: bytes, module: nn.Module, example: tuple[Tensor, ...], name: str = ""
) -> None:
    loaded = load(data, "torchscript")
    if name in LOADED_ALONE:
        return
    with torch.inference_mode():
        torch.testing.assert_close(loaded(*example), module(*example), equal_nan=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_every_module_of_torch_nn_loads(name: str, way: str) -> None:
    if name in NEITHER or (name in TRACED_ALONE and way != "traced"):
        pytest.skip("torch itself cannot save this model")
    default = ((), ROW, ROW.abs()) if name.endswith("Loss") else ((), ROW)
    args, *example = MODULES.get(name, default)
    torch.manual_seed(1)
    module = getattr(nn, name)(*args).eval()
    check_loads(WAYS[way](module, *example), module, tuple(example), name)


class Residual(nn.Module):
    """A block like in ResNet, then one like in MobileNet, then one like in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(6, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(True))
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(True),
            nn.AdaptiveAvgPool2d(1), nn.Hardsigmoid(),
        )  # fmt: skip
        self.layers = nn.ModuleList([nn.Conv2d(8 + 4 * i, 4, 1) for i in range(2)])
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + x * self.depthwise(x)
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        x = functional.interpolate(torch.cat(features, 1), scale_factor=0.5, mode="bilinear")
        answer: Tensor = self.classifier(x.mean([2, 3]))
        return answer


class Patches(nn.Module):
    """A small vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(6, 8, 4, 4)
        self.token = nn.Parameter(torch.ones(1, 1, 8))
        self.position = nn.Parameter(torch.ones(1, 5, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        answer: Tensor = self.head(self.encoder(x)[:, 0]).softmax(-1)
        return answer


class Controlled(nn.Module):
    """Loops, branches, containers, text, errors, no_grad, fork, and attributes with any name."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.names = {"a": 1, "b": 2}
        self.save = "a"
        self.load = nn.ModuleDict({"x-y": nn.Linear(6, 6)})
        self.register_buffer("torch", torch.ones(6).expand(6))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if x.size(0) > 100:
            raise ValueError(f"too many Märkte: {x.size(0)}")
        count, parts = 0, [x]
        while count < self.names[self.save] + 1:
            parts.append(parts[-1] * 2 if count % 2 == 0 else -parts[-1])
            count += 1
        for i, layer in enumerate(self.ops):
            x = layer(x) + i
        later = torch.jit.fork(self.load["x-y"], x)
        with torch.no_grad():
            x = torch.jit.wait(later).clamp(min=0)
        return {self.save + "!": x, "n": torch.stack(parts).sum(0).to(torch.float64)}


class Quantizable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv, self.norm, self.relu = nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.second, self.pool = nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1)
        self.linear, self.add = nn.Linear(8, 4), torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(self.quant(x))))
        x = self.add.add(x, self.second(x))
        answer: Tensor = self.dequant(self.linear(self.pool(x).flatten(1)))
        return answer


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.linear = nn.LSTM(6, 4), nn.GRU(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.linear(self.lstm(x)[0] + self.gru(x)[0])
        return answer


def static_quantized() -> nn.Module:
    module = Quantizable().eval()
    module.qconfig = quantization.get_default_qconfig("x86")
    quantization.fuse_modules(module, [["conv", "norm", "relu"]], inplace=True)
    quantization.prepare(module, inplace=True)
    module(IMAGES[2])
    converted: nn.Module = quantization.convert(module)
    return converted


def dynamic_quantized(dtype: torch.dtype) -> nn.Module:
    kinds = {nn.LSTM, nn.GRU, nn.Linear}
    module: nn.Module = quantization.quantize_dynamic(Recurrent().eval(), kinds, dtype=dtype)
    return module


def normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.GELU())


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "residual": (Residual, IMAGES[2]),
    "patches": (Patches, IMAGES[2]),
    "controlled": (Controlled, ROW),
    "static": (static_quantized, IMAGES[2]),
    "dynamic": (lambda: dynamic_quantized(torch.qint8), SEQUENCE),
    "half": (lambda: dynamic_quantized(torch.float16), SEQUENCE),
    "weight norm": (normed, ROW),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.exhaustive
def test_whole_networks_load(name: str, way: str) -> None:
    torch.manual_seed(1)
    make, example = NETS[name]
    if name == "weight norm" and way != "traced":
        pytest.skip("torch itself cannot save this model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = make().eval()
        data = WAYS[way](module, example)
    check_loads(data, module, (example,))
