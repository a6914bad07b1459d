"""Tests the figures that the stream benchmarks compute."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.stream.fuzz import KINDS, decode_all
from benchmarks.stream.latency import beside
from benchmarks.stream.memory import SETTLING, growth
from benchmarks.stream.run import numbered
from model_handlers.package import read_manifest
from transforms.messages.decode import decode_messages


def test_only_recorded_figures_of_the_reference_are_compared() -> None:
    assert list(beside(10)) == ["10"]
    assert list(beside(50)) == ["40", "60"]
    assert beside(200) == {}


def test_growth_is_measured_after_the_memory_has_settled() -> None:
    steep = [(n, n / 100) for n in range(0, SETTLING, 1_000)]
    flat = [(n, 300 + n / 50_000) for n in range(SETTLING, 10 * SETTLING, 1_000)]
    assert growth([*steep, *flat]) == pytest.approx(2.0)


def test_messages_are_numbered_and_use_the_bodies_in_turn() -> None:
    messages = numbered([b'{"a":1', b'{"a":2'], [-1, 0, 1])
    assert [m["data"] for m in messages] == [
        b'{"a":2,"sequence":-1}',
        b'{"a":1,"sequence":0}',
        b'{"a":2,"sequence":1}',
    ]


def test_fuzzed_messages_of_every_kind_balance(example: Path) -> None:
    found = decode_all(read_manifest(str(example / "model")), 1_500, seed=3)
    # Some messages hold several rows.
    assert sum(found["kinds"].values()) == 1_500 < sum(found["outcomes"].values())
    assert found["kinds"].keys() >= KINDS.keys()
    assert found["outcomes"]["good"] > 100


def test_a_lost_fuzzed_message_is_reported(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(messages: Any, *rest: Any) -> Any:
        return decode_messages(messages[1:], *rest)

    monkeypatch.setattr("benchmarks.stream.fuzz.decode_messages", forgetful)
    with pytest.raises(SystemExit, match=r"seed 3, messages from 0 on: .*are not those of the mes"):
        decode_all(read_manifest(str(example / "model")), 100, seed=3)
