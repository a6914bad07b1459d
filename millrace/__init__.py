"""The public API of Millrace: handlers, transforms, model packages and results.

    import millrace

    manifest = millrace.read_manifest("package/")
    handler = millrace.TorchModelHandler("package/", manifest)

Each name is imported when it is first used, so `import millrace` loads neither torch nor Beam.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloud.vertex import EndpointAddress
    from common.errors import MillraceError
    from millrace.packaging import fit, package, prepare
    from model_handlers.endpoints.endpoint import RequestLimits
    from model_handlers.endpoints.handler import VertexEndpointHandler
    from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
    from model_handlers.package import read_manifest
    from model_handlers.packaging.builder import column, field, output, tensor
    from model_handlers.torch_model import TorchModelHandler
    from model_handlers.write_package import write_package
    from transforms.encode import EncodeRows
    from transforms.output_fields import choose_fields
    from transforms.predict import Predict
    from transforms.provenance import Provenance
    from transforms.results import external_table, open_result
    from transforms.rows import RecordBatchesToRows, RowsToRecordBatches

    __version__: str

__all__ = [
    "EncodeRows",
    "EndpointAddress",
    "InputSpec",
    "Manifest",
    "MillraceError",
    "OutputSpec",
    "Predict",
    "Provenance",
    "RecordBatchesToRows",
    "RequestLimits",
    "RowsToRecordBatches",
    "TorchModelHandler",
    "VertexEndpointHandler",
    "__version__",
    "choose_fields",
    "column",
    "external_table",
    "field",
    "fit",
    "open_result",
    "output",
    "package",
    "prepare",
    "read_manifest",
    "tensor",
    "write_package",
]

_MODULES = {
    "EncodeRows": "transforms.encode",
    "EndpointAddress": "cloud.vertex",
    "InputSpec": "model_handlers.manifests.manifest",
    "Manifest": "model_handlers.manifests.manifest",
    "MillraceError": "common.errors",
    "OutputSpec": "model_handlers.manifests.manifest",
    "Predict": "transforms.predict",
    "Provenance": "transforms.provenance",
    "RecordBatchesToRows": "transforms.rows",
    "RequestLimits": "model_handlers.endpoints.endpoint",
    "RowsToRecordBatches": "transforms.rows",
    "TorchModelHandler": "model_handlers.torch_model",
    "VertexEndpointHandler": "model_handlers.endpoints.handler",
    "__version__": "millrace.version",
    "choose_fields": "transforms.output_fields",
    "column": "model_handlers.packaging.builder",
    "external_table": "transforms.results",
    "field": "model_handlers.packaging.builder",
    "fit": "millrace.packaging",
    "open_result": "transforms.results",
    "output": "model_handlers.packaging.builder",
    "package": "millrace.packaging",
    "prepare": "millrace.packaging",
    "read_manifest": "model_handlers.package",
    "tensor": "model_handlers.packaging.builder",
    "write_package": "model_handlers.write_package",
}


# A type checker would conclude from this function that the module has every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name that was not used before."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Return all public names, used before or not."""
    return sorted({*globals(), *__all__})
