"""Tests what the soak counts, the messages that it sends, and how it keeps a process running."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.stream.run import make_bodies
from benchmarks.stream.soak.__main__ import Plan, command_of
from benchmarks.stream.soak.accounts import (
    NOT_SENT,
    Copies,
    account,
    first_arrivals,
    latencies,
    numbers_of,
    recovery,
)
from benchmarks.stream.soak.lives import Life, Lives, Outage, kill_times, memory_figures, supervise
from benchmarks.stream.soak.report import faults, line, report
from benchmarks.stream.soak.sinks import copies_in_files, copies_of, sink_flags
from benchmarks.stream.soak.traffic import (
    CODES,
    FAULTS,
    FAULTY_EVERY,
    OUTCOMES,
    UNKNOWN,
    expected_outcomes,
    fault_of,
    make_messages,
)
from examples.transactions.data import FEATURES
from model_handlers.manifests.manifest import InputSpec, Manifest
from pipelines.options.flag import parse_flags
from pipelines.stream.config import stream_config
from pipelines.stream_local import COMMAND as STREAM
from transforms.json_rows.row_format import RowFormat
from transforms.messages.decode import MessageFormat, decode_messages
from transforms.messages.message import Message
from transforms.provenance import Provenance, utc_now
from transforms.row_schemas import CARRIED
from transforms.validate import validate

SENT = np.array([40, 10, 30, 20])
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def copies(*found: tuple[int, int, int]) -> Copies:
    """Return copies from an id, a life and an outcome each."""
    return Copies(*np.array(found, np.int64).reshape(-1, 3).T)


def test_each_fault_becomes_one_dead_letter_with_its_reason_and_the_others_are_scored(
    make_manifest: Callable[..., Manifest],
) -> None:
    manifest = make_manifest(InputSpec("x", FEATURES, shape=(len(FEATURES),)))
    count = FAULTY_EVERY * len(FAULTS)
    messages = [
        Message(one["data"], one.get("attributes", {}), str(number), 1_700_000_000_000_000, "")
        for number, one in enumerate(make_messages(make_bodies(10), range(count)))
    ]
    own = Provenance.of(manifest, "life-1", "soak")
    read = MessageFormat(RowFormat(manifest, None, (), CARRIED))
    batches, failures = decode_messages(messages, read, own, utc_now())
    assert failures is not None
    codes = {row["row_id"]: CODES[row["reason"]] for row in failures.to_pylist()}
    for batch in batches:
        good, bad, found = validate(batch, manifest)
        codes |= dict.fromkeys(good.column("row_id").to_pylist(), CODES["scored"])
        reasons = [CODES[one.reason] for one in found]
        codes |= dict(zip(bad.column("row_id").to_pylist(), reasons, strict=True))
    assert [codes[str(n)] for n in range(count)] == expected_outcomes(count).tolist()
    assert np.count_nonzero(expected_outcomes(count)) == len(FAULTS)
    assert fault_of(0) is None
    assert fault_of(FAULTY_EVERY - 1) is FAULTS[0]


def test_ids_are_numbered_by_the_message_and_unknown_ids_have_no_number() -> None:
    found = numbers_of(np.array([10, 20, 40, 99, 0, 30]), SENT)
    assert found.tolist() == [1, 3, 0, NOT_SENT, NOT_SENT, 2]


def test_lost_wrong_and_unknown_copies_are_counted() -> None:
    expected = np.array([0, 0, 2, 0])
    held = copies((40, 1, 0), (10, 1, 2), (30, 1, 2), (99, 1, 0))
    found = account(held, SENT, expected, ())
    assert (found["copies"], found["lost"], found["wrong"], found["not_sent"]) == (4, 1, 1, 1)
    assert found["again"] == 0
    # A row of a message that must be a dead letter is wrong too, and so is another reason.
    assert account(copies((30, 1, 0), (30, 1, UNKNOWN)), SENT, expected, ())["wrong"] == 2


def test_copies_are_explained_by_a_later_life_or_by_the_outage() -> None:
    expected = np.zeros(4)
    held = copies((40, 1, 0), (40, 2, 0), (40, 2, 0), (10, 3, 0), (10, 3, 0), (30, 1, 0))
    found = account(held, SENT, expected, {2})
    assert (found["lost"], found["again"], found["most_copies"]) == (1, 3, 3)
    assert found["again_in_a_later_life"] == 1
    assert found["again_after_the_outage"] == 1
    assert found["again_unexplained"] == 1


def test_an_empty_sink_has_lost_all() -> None:
    found = account(Copies.joined([]), SENT, np.zeros(4), ())
    assert (found["lost"], found["again"], found["most_copies"]) == (4, 0, 0)


def test_latency_ends_at_the_first_arrival_and_is_reported_by_minute() -> None:
    due = np.array([0.0, 30.0, 60.0, 61.0])
    numbers, times = np.array([1, 0, 1, NOT_SENT, 2]), np.array([31.0, 0.5, 40.0, 1.0, 60.25])
    first = first_arrivals(4, numbers, times)
    assert first.tolist() == [0.5, 31.0, 60.25, np.inf]
    found = latencies(due, first, 0.0)
    assert found["minutes"] == [[750.0, 975.0, 995.0, 1_000.0], [250.0] * 4]
    assert found["all"][-1] == 1_000.0
    assert latencies(due, np.full(4, np.inf), 0.0) == {"all": None, "minutes": []}


def test_a_pipeline_has_recovered_when_new_results_are_on_time_and_the_older_ones_are_there() -> (
    None
):
    due = np.arange(10.0)
    first = due + 0.5
    # The process is killed at 2.6, and the messages from 2 on wait.
    first[2:6] = [30.0, 7.0, 7.0, 7.25]
    assert recovery(due, first, 2.6) == {"on_time": 3.4, "backlog_gone": 27.4}
    assert recovery(due, first, 9.5) == {"on_time": None, "backlog_gone": 20.5}
    first[2] = np.inf
    assert recovery(due, first, 2.6) == {"on_time": 3.4, "backlog_gone": None}


def test_the_trend_of_the_memory_leaves_out_what_a_young_process_uses() -> None:
    lives = [
        Life(number, 0.0, samples=[(0.0, 50.0), (30.0, 300.0 + number), (55.0, 302.0 + number)])
        for number in range(1, 5)
    ]
    found = memory_figures([*lives, Life(5, 0.0, samples=[(5.0, 900.0)])], 30.0)
    assert found["settled"] == [[n, 300.0 + n] for n in range(1, 5)]
    assert found["trend"] == pytest.approx(3.0)
    assert (found["growth_in_a_life"], found["peak"]) == (2.0, 900.0)
    assert memory_figures([], 30.0)["trend"] is None


def test_kills_come_at_fixed_times_and_at_the_end() -> None:
    assert kill_times(100.0, 60, 20) == [120.0, 140.0, 160.0]
    assert kill_times(100.0, 50, 20) == [120.0, 140.0, 150.0]


def test_copies_are_read_from_rows_and_from_dead_letters(tmp_path: Path) -> None:
    runs = pa.array(["life-1", "life-12"]).dictionary_encode()
    rows = pa.table({"row_id": ["7", "8"], "run_id": runs})
    letters = {"row_id": "9", "run_id": "life-3", "reason": "null", "message": "m"}
    unknown = pa.table({name: [value] for name, value in (letters | {"reason": "x"}).items()})
    assert copies_of(unknown).outcomes.tolist() == [UNKNOWN]
    for part, name in (("scores", "a.parquet"), ("dead_letters", "b.jsonl")):
        path = tmp_path / part / "2026-11-30" / name
        path.parent.mkdir(parents=True)
        if part == "scores":
            pq.write_table(rows, path)
        else:
            path.write_bytes(orjson.dumps(letters) + b"\n")
    found = copies_in_files(tmp_path)
    assert found.ids.tolist() == [7, 8, 9]
    assert found.lives.tolist() == [1, 12, 3]
    assert [OUTCOMES[code] for code in found.outcomes] == ["scored", "scored", "null"]


def test_the_command_has_all_sinks_and_names_its_life(tmp_path: Path) -> None:
    command = command_of(tmp_path / "model", sink_flags("p", tmp_path / "files"))(3)
    assert command[:3] == [sys.executable, "-m", "pipelines.stream_local"]
    parsed = parse_flags(STREAM.name, STREAM.about, STREAM.options, command[3:])
    config = stream_config("stream_local", parsed)
    assert config.run.run_id == "life-3"
    rows, letters = config.sinks, config.letter_sinks
    assert all((rows.output_topic, rows.output_table, rows.output_files))
    assert all((letters.dead_letter_topic, letters.dead_letter_table, letters.dead_letter_files))


def test_a_plan_needs_memory_for_its_messages_and_kills_within_its_time() -> None:
    plan = Plan(3_600, 500, 60, 300)
    assert plan.memory_gb == 10
    plan.check(20.0)
    with pytest.raises(SystemExit, match="expected 14 GB of free memory"):
        plan.check(8.0)
    with pytest.raises(SystemExit, match="expected an outage and kills within 100 s"):
        Plan(100, 500, 60, 300).check(20.0)


class FakeServer:
    """A server that records when it was killed and started."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def kill(self) -> None:
        self.calls.append("kill")

    def start(self) -> None:
        self.calls.append("start")


def lives_of(folder: Path, *command: str) -> Lives:
    return Lives(lambda number: command, {}, folder / "log")


def test_a_process_is_killed_on_schedule_and_started_again(tmp_path: Path) -> None:
    server: Any = FakeServer()
    lives, now = lives_of(tmp_path, *SLEEP), time.time()
    lives.start()
    checks: list[int] = []
    outage = Outage(server, now + 0.2, now + 0.3)
    supervise(lives, outage, [now + 0.4, now + 0.8], lambda: checks.append(1))
    assert [(life.number, life.end) for life in lives.all] == [(1, "killed"), (2, "killed")]
    assert all(life.samples[0][1] > 0 for life in lives.all[:1])
    assert server.calls == ["kill", "start"]
    assert outage.begin <= outage.down <= outage.up
    assert checks


def test_a_process_that_fails_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.stream.soak.lives.RESTART_SECONDS", 0.0)
    lives = lives_of(tmp_path, sys.executable, "-c", "raise SystemExit('no table')")
    lives.start()
    while len(lives.all) < 3:
        lives.keep()
    lives.kill()
    assert [life.end for life in lives.all[:2]] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("code", "seconds", "end"),
    [("pass", 60.0, "finished"), ("exit('no table')", 60.0, "failed"), (SLEEP[-1], 0.0, "killed")],
)
def test_the_last_run_must_end_by_itself_and_with_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str, seconds: float, end: str
) -> None:
    lives = lives_of(tmp_path, sys.executable, "-c", code)
    lives.start()
    lives.finish(seconds)
    assert [life.end for life in lives.all] == [end]
    assert ("no table" in capsys.readouterr().out) == (end == "failed")


def run_of(held: dict[str, Copies]) -> dict[str, Any]:
    """Return the report of 40 messages, of which two are faulty, with one kill at 12.5 s."""
    ids, due = np.arange(100, 140), 1_000.0 + np.arange(40.0)
    lives = [Life(1, 999.0, 1_012.5, "killed"), Life(2, 1_012.5, 1_100.0, "finished")]
    lives[0].samples.append((6.0, 300.0))
    return report(
        due=due,
        late=np.zeros(40),
        ids=ids,
        held=held,
        arrivals=1_001.0 + np.arange(40.0),
        lives=lives,
        outage=(1_020.0, 1_030.0),
        kill_seconds=12,
    )


def test_the_report_finds_nothing_wrong_with_complete_sinks_and_can_be_written() -> None:
    whole = Copies(np.arange(100, 140), np.repeat([1, 2], [13, 27]), expected_outcomes(40))
    found = run_of(dict.fromkeys(("topic", "table", "files"), whole))
    assert faults(found) == []
    assert (found["messages"], found["faulty"]) == (40, 2)
    assert found["lives"] == {"killed": 1, "failed": 0, "finished": 1}
    assert found["outage"] == [20.0, 30.0]
    assert found["sinks"]["table"]["outcomes"]["scored"] == 38
    assert found["longest_backlog_seconds"]["kills"] == 0.5
    assert found["memory_mb"]["settled"] == [[1, 300.0]]
    assert {target["measured"] for target in found["targets"].values()} == {0, None}
    assert Counter(line(found))["\n"] == 4
    assert json.loads(json.dumps(found)) == found


def test_the_report_names_what_is_missing_in_one_sink() -> None:
    whole = Copies(np.arange(100, 140), np.ones(40, int), expected_outcomes(40))
    less = Copies(whole.ids[1:], whole.lives[1:], whole.outcomes[1:])
    found = run_of({"topic": whole, "table": less, "files": whole})
    assert faults(found) == ["table: lost 1"]
    assert found["targets"]["lost"] == {"at_most": 0, "measured": 1}
    found["lives"]["finished"] = 0
    assert faults(found) == ["the last run did not end with success", "table: lost 1"]
