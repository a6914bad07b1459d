"""Fields in the answers of a server: those of a worker, whichever a request chooses."""

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_model import GOOD, ROWS, write_raw_package
from serving_client import Running, running

from common.errors import UsageError
from model_handlers.endpoints.numpy_json import dump_objects
from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.parts import OutputSpec
from model_handlers.package import read_manifest
from model_handlers.run_model import Answer
from model_handlers.steps.step import Refused
from model_handlers.torch_model import TorchModelHandler
from serving.instances import BadInstances, InstanceReader
from serving.predictions import choose, prediction_faults, prediction_fields
from serving.settings import parse_settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
INSTANCE_OF = [{name: v for name, v in row.items() if name != "id"} for row in ROWS]
INSTANCES = [INSTANCE_OF[i] for i in GOOD]
EVERY = ["logits", "probabilities", "label", "probability", "best", "decision"]
# A field that cannot be computed for any row: no name has so high a number.
FAULTY = {
    "name": "faulty",
    "from": [
        {"output": "logits"},
        {"step": "argmax"},
        {"step": "scale", "mean": -7.0, "std": 1.0},
        {"step": "names", "values": ["a", "b"]},
    ],
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "package"
    write_raw_package(folder)
    return folder


@pytest.fixture(scope="module")
def manifest(package: Path) -> Manifest:
    return read_manifest(str(package))


@pytest.fixture(scope="module")
def reader(package: Path, manifest: Manifest) -> InstanceReader:
    return InstanceReader(
        manifest, TorchModelHandler(str(package), manifest).load_model().preparation
    )


@pytest.fixture(scope="module")
def served(package: Path) -> Iterator[Running]:
    with running(package) as server:
        yield server


@pytest.fixture(scope="module")
def expected(package: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """The outputs and fields that a worker computes, by name, for each instance."""
    model = TorchModelHandler(str(package), manifest).load_model()
    assert model.preparation is not None
    inputs, refused = model.preparation.tensors(INSTANCES)
    assert not refused
    (logits,) = model.forward(inputs, slice(0, len(INSTANCES)))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), 3)
    fields, refused = model.preparation.derive({"logits": flat})
    assert not refused
    columns = {"logits": logits.tolist()} | {n: c.to_pylist() for n, c in fields.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def assert_same(got: Any, wanted: Any) -> None:
    """Compare values of JSON, numbers within a tolerance."""
    if isinstance(wanted, float):
        assert got == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    elif isinstance(wanted, Mapping):
        assert list(got) == list(wanted)
        for name, value in wanted.items():
            assert_same(got[name], value)
    elif isinstance(wanted, list):
        assert len(got) == len(wanted)
        for pair in zip(got, wanted, strict=True):
            assert_same(*pair)
    else:
        assert got == wanted


def test_an_answer_has_the_score_and_the_output_fields(
    served: Running, expected: list[dict[str, Any]]
) -> None:
    answer = served.client.predict(INSTANCES)
    assert answer.status == 200, answer.body
    wanted = [
        {"anomaly_score": row["probability"]}
        | {name: row[name] for name in ("label", "decision", "best")}
        for row in expected
    ]
    assert_same(answer.json, {"predictions": wanted})


def test_a_request_chooses_outputs_and_fields(
    served: Running, expected: list[dict[str, Any]]
) -> None:
    for names in (["decision"], ["best", "logits"], ["logits"], EVERY[::-1]):
        answer = served.client.predict(INSTANCES, outputs=names)
        assert_same(answer.json["predictions"], [{n: row[n] for n in names} for row in expected])
    whole = served.client.predict(INSTANCES, outputs="all").json["predictions"]
    assert_same(whole, [{n: row[n] for n in EVERY} for row in expected])
    refused = served.client.predict(INSTANCES, outputs=["labl"])
    assert refused.status == 400
    assert "no output or field 'labl' (did you mean 'label'?)" in refused.error["message"]


def test_requests_that_share_a_pass_get_their_own_fields(
    served: Running, expected: list[dict[str, Any]]
) -> None:
    def ask(i: int) -> tuple[Any, Any]:
        row, names = i % len(INSTANCES), EVERY[i % len(EVERY) :]
        answer = served.client.predict([INSTANCES[row]] * (1 + i % 3), outputs=names)
        return answer.json["predictions"], [{n: expected[row][n] for n in names}] * (1 + i % 3)

    with ThreadPoolExecutor(8) as pool:
        for got, wanted in pool.map(ask, range(60)):
            assert_same(got, wanted)


@given(
    requests=st.lists(st.lists(st.integers(0, len(ROWS) - 1), min_size=1, max_size=4), max_size=5)
)
def test_raw_requests_that_are_read_together_are_as_if_alone(
    reader: InstanceReader, requests: list[list[int]]
) -> None:
    asked = [[INSTANCE_OF[i] for i in rows] for rows in requests]
    for rows, together in zip(asked, reader.read_each(asked), strict=True):
        if isinstance(together, BadInstances):
            with pytest.raises(BadInstances) as bad:
                reader.read(rows)
            assert together.faults == bad.value.faults
        else:
            for one, other in zip(together, reader.read(rows), strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_bad_request_among_others_is_refused_alone(
    served: Running, expected: list[dict[str, Any]]
) -> None:
    names = ["label", "probability"]

    def ask(i: int) -> Any:
        bad = [INSTANCE_OF[3]] if i % 3 == 0 else []
        return served.client.predict([INSTANCES[i % len(INSTANCES)], *bad], outputs=names)

    with ThreadPoolExecutor(8) as pool:
        for i, answer in enumerate(pool.map(ask, range(60))):
            if i % 3 == 0:
                assert answer.status == 400
                assert [one["index"] for one in answer.error["instances"]] == [1]
                assert answer.error["instances"][0]["reason"] == "unknown_value"
            else:
                row = expected[i % len(INSTANCES)]
                assert_same(answer.json["predictions"], [{n: row[n] for n in names}])


def test_a_field_that_cannot_be_computed_is_a_bad_instance(tmp_path: Path) -> None:
    score = {"name": "first", "from": [{"output": "logits"}, {"step": "element", "at": 0}]}
    write_raw_package(
        tmp_path / "p", fields=[score, FAULTY], output_fields=[], score_output="first"
    )
    with running(tmp_path / "p") as server:
        assert server.client.predict(INSTANCES).status == 200
        refused = server.client.predict(INSTANCES, outputs=["first", "faulty"])
        counted = server.client.metric('millrace_bad_rows_total{reason="out_of_range"}')
    assert (refused.status, refused.error["bad_instances"]) == (400, len(INSTANCES))
    assert refused.error["instances"][0] == {
        "index": 0,
        "reason": "out_of_range",
        "message": "field faulty: expected an integer from 0 to 1, got another number",
    }
    assert counted == len(INSTANCES)


def test_a_server_has_thresholds_of_its_own(package: Path) -> None:
    with running(package, thresholds={"decision": (0.001, 0.002)}, outputs="decision") as server:
        decisions = server.client.predict(INSTANCES).json["predictions"]
    assert decisions == [{"decision": "auto"}] * len(INSTANCES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thresholds": {"label": (0.1,)}}, "no field 'label' with thresholds"),
        (
            {"thresholds": {"decision": (0.1, 0.2)}, "outputs": "label", "fixed_outputs": True},
            "--thresholds decision has no effect, because the field decision is not written: add "
            "it to --outputs",
        ),
        ({"instance_keys": ("label",)}, "--instance_keys: 'label' is a field of model raw"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_fields_end_the_server(
    package: Path, settings: dict[str, Any], message: str
) -> None:
    with (
        pytest.raises(AssertionError, match=re.escape(message)),
        running(package, **settings),
    ):
        pass


def test_the_flag_takes_several_fields() -> None:
    def thresholds(*words: str) -> Mapping[str, tuple[float, ...]]:
        return parse_settings(["--model_path", "p", *words], {}).thresholds

    assert thresholds() == {}
    assert thresholds("--thresholds", "a=1,2", "b=-3") == {"a": (1, 2), "b": (-3,)}
    with pytest.raises(
        UsageError, match=r"--thresholds: expected FIELD=NUMBER,NUMBER,..., got '1'"
    ):
        thresholds("--thresholds", "1")


def test_fields_are_chosen_by_keyword_or_by_name(manifest: Manifest) -> None:
    assert [f.key for f in prediction_fields(manifest, "all")] == EVERY
    assert choose(manifest, "decision").outputs == {"logits"}
    assert choose(manifest, "decision").derived == {"probabilities", "probability", "decision"}
    assert choose(manifest, "logits").derived == frozenset()


def test_a_model_without_a_score_answers_with_its_output_fields(tmp_path: Path) -> None:
    manifest = write_raw_package(tmp_path / "p", score_output=None)
    assert [f.key for f in prediction_fields(manifest, "score")] == ["label", "decision", "best"]
    with pytest.raises(UsageError, match="has no score output"):
        prediction_fields(manifest, "anomaly_score")


@given(
    st.lists(st.integers(0, 19), unique=True).map(sorted), st.integers(0, 20), st.integers(0, 20)
)
def test_a_part_of_an_answer_has_the_refusals_of_its_rows(
    bad: list[int], one: int, other: int
) -> None:
    start, stop = sorted((one, other))
    refused = Refused(np.array(bad, int), "reason", "message", "label")
    column = pa.array(range(20))
    answer = Answer([np.arange(20)], {}, {"label": column}, [refused])
    part = answer.part(slice(start, stop))
    assert part.fields["label"].to_pylist() == part.arrays[0].tolist() == [*range(start, stop)]
    assert (part.refused[0].rows + start).tolist() == [i for i in bad if start <= i < stop]


def test_only_the_fields_of_a_request_are_judged(manifest: Manifest) -> None:
    refused = Refused(np.array([1]), "out_of_range", "too large", "label")
    answer = Answer([np.zeros((2, 3))], {}, {}, [refused])
    assert prediction_faults(choose(manifest, "decision"), answer) == {}
    (fault,) = prediction_faults(choose(manifest, "decision,label"), answer).values()
    assert (fault.reason, fault.message) == ("out_of_range", "field label: too large")


@given(st.lists(st.tuples(st.text(max_size=4), st.integers(0, 9)), min_size=1, max_size=4))
def test_texts_and_arrays_are_members_in_the_order_of_the_keys(rows: list[tuple[str, int]]) -> None:
    texts = [json.dumps(text).encode() for text, _ in rows]
    numbers = np.array([number for _, number in rows])
    written = dump_objects(["%n", "t%", "m"], [numbers, texts, numbers])
    assert json.loads(written) == [{"%n": n, "t%": text, "m": n} for text, n in rows]


def test_the_outputs_of_other_models_are_as_before(make_manifest: Any) -> None:
    manifest = make_manifest(outputs=(OutputSpec("total"), OutputSpec("code", shape=(2,))))
    assert choose(manifest, "all").outputs == {"total", "code"}
    assert choose(manifest, "all").derived == frozenset()
