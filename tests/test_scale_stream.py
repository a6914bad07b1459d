"""A scale test of a running stream on the Pub/Sub emulator, from the plan to the result."""

import json
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import assert_one_line_error, words
from google.cloud import bigquery
from libraries import need_library
from pubsub_mailbox import Mailbox
from waiting import wait_until

from common.errors import InputError
from examples.local_cloud import LocalCloud
from scale_tests import __main__ as scale_command
from scale_tests.load.plan import Rows
from scale_tests.load.rows import make_bodies
from scale_tests.measures.accounts import Fate
from scale_tests.measures.latency import Latencies
from scale_tests.measures.stamps import MOMENTS
from scale_tests.streams import stream
from scale_tests.streams.table_collector import TableCollector

PLAN = """\
target = "stream"
send_to = "in-{id}"
seed = 3

[objective]
latency_ms = 60_000

[sender]
processes = 2
late_ms = 60_000
cpu = 1

[rows]
faulty = 0.05

[result]
source = "topic"
name = "out-{id}"
dead_letters = "dead-{id}"

[[phases]]
kind = "warm_up"
rate = 20
seconds = 1

[[phases]]
kind = "constant"
rate = 200
seconds = 3

[[phases]]
kind = "burst"
messages = 400
"""


class Stand:
    """Topics on the emulator, and the plan of a test of them."""

    def __init__(self, on: LocalCloud, folder: Path) -> None:
        self.on, self.folder, self.id = on, folder, uuid.uuid4().hex[:12]
        self.input, self.output, self.dead = (
            Mailbox(on.cloud, f"{kind}-{self.id}").create() for kind in ("in", "out", "dead")
        )
        self.plan = folder / "plan.toml"
        self.plan.write_text(PLAN.format(id=self.id))

    def run(self) -> int:
        flags = {"plan": self.plan, "project": self.on.cloud.project, "output": self.folder / "out"}
        return scale_command.main(["stream", *words(flags)])

    @contextmanager
    def scoring(
        self, model: Path, table: str = "", *, timings: bool = False
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run the pipeline in a process of its own, with a topic or a table for its rows."""
        sink = {"output_table": table} if table else {"output_topic": self.output.topic}
        flags = {
            "input_subscription": self.input.subscription,
            "model": model,
            "score_output": "normalized_MAE",
            "dead_letter_topic": self.dead.topic,
            "row_timings": "true" if timings else None,
            **sink,
        }
        command = [sys.executable, "-m", "pipelines.stream_local", *words(flags)]
        with subprocess.Popen(command, env=self.on.environ(), stderr=subprocess.DEVNULL) as process:
            try:
                yield process
            finally:
                process.terminate()

    def subscriptions(self) -> list[str]:
        found = self.on.cloud.subscriber().list_subscriptions(
            project=f"projects/{self.on.cloud.project}"
        )
        return [one.name for one in found if "millrace-scale" in one.name]


@pytest.fixture
def stand(stream_emulators: LocalCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    need_library("hdrh")
    need_library("scipy")
    for name, value in stream_emulators.environment.items():
        monkeypatch.setenv(name, value)
    return Stand(stream_emulators, tmp_path)


def test_every_message_of_a_stream_is_accounted_for(
    stand: Stand, example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Results of another test are ignored, and stay where they are.
    stand.output.publish([b'{"test_id": "other", "sequence": 0}', b"not JSON"])
    from hdrh.log import HistogramLogReader

    with stand.scoring(example / "model", timings=True):
        assert stand.run() == 0
    result = json.loads((stand.folder / "out" / "result.json").read_text())
    constant, burst = result["levels"]
    assert burst["accounts"]["planned"] == 400
    for level in (constant, burst):
        accounts = level["accounts"]
        assert accounts["planned"] == accounts["scored"] + accounts["dead_lettered"] > 0
        assert accounts["duplicates"] == accounts["lost"] == level["wrong_results"] == 0
        assert level["verdict"] == "sustained"
        assert [part["name"] for part in level["parts"]] == [name for _, name in MOMENTS[1:]]
        # Pub/Sub cuts its times to milliseconds.
        assert all(part["clock_ms"] <= 1 for part in level["parts"])
    assert burst["accounts"]["dead_lettered"] > 0
    assert (result["strays"], result["interrupted"]) == (0, False)
    rows = pq.read_table(stand.folder / "out" / "samples.parquet")
    assert set(rows["fate"].to_pylist()) == {Fate.SCORED, Fate.DEAD_LETTERED}
    own = rows.filter(np.array(rows["level"]) == "3 burst")
    latencies = np.sort(own["arrived"].to_numpy() - own["due"].to_numpy()) * 1e3
    scored = own.filter(np.array(own["fate"]) == Fate.SCORED)
    mean_ms = np.mean(scored["arrived"].to_numpy() - scored["due"].to_numpy()) * 1e3
    assert sum(part["mean_ms"] for part in burst["parts"]) == pytest.approx(mean_ms)
    assert burst["latencies"][0]["ms"] == pytest.approx(latencies[199], rel=1e-3)
    assert "p50" in capsys.readouterr().out
    log = HistogramLogReader(str(stand.folder / "out" / "level-01.hlog"), Latencies().histogram)
    assert log.get_next_interval_histogram().get_total_count() == 400
    # The subscriptions of the test are gone, and that of the user has all results.
    assert not stand.subscriptions()
    assert len(stand.output.take(2_000)) > 2


def test_results_are_read_from_the_table_of_a_stream(stand: Stand, example: Path) -> None:
    client, table = stand.on.cloud.bigquery(), f"streams.rows_{stand.id}"
    full = f"{stand.on.cloud.project}.{table}"
    of_table = PLAN.replace('"topic"', '"table"').replace('"out-{id}"', '"streams.rows_{id}"')
    stand.plan.write_text(of_table.format(id=stand.id))

    def exists() -> bool:
        return any(one.table_id == f"rows_{stand.id}" for one in client.list_tables("streams"))

    with stand.scoring(example / "model", table, timings=True):
        wait_until(exists)
        assert stand.run() == 0
    result = json.loads((stand.folder / "out" / "result.json").read_text())
    for level in result["levels"]:
        accounts = level["accounts"]
        assert accounts["planned"] == accounts["scored"] + accounts["dead_lettered"] > 0
        assert accounts["duplicates"] == accounts["lost"] == level["wrong_results"] == 0
        names = [part["name"] for part in level["parts"]]
        assert names[3:] == ["decode", "batch wait", "predict", "encode + sink + delivery"]
    # A row that is there twice is a duplicate, and a row of another test does not count.
    own = result["test_id"]
    reader = TableCollector(stand.on.cloud, full, own)
    reader.receive()
    before = reader.count
    copy = f"INSERT INTO `{full}` SELECT * FROM `{full}` WHERE sequence <= 100"
    client.query(copy).result()
    reader.receive()
    assert before + 80 < reader.count <= before + 101
    other = TableCollector(stand.on.cloud, full, "other")
    other.receive()
    assert other.count == 0


@pytest.mark.parametrize("columns", [None, ["sequence"]])
def test_a_table_without_the_columns_of_a_test_is_named(
    stand: Stand, columns: list[str] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    client, name = stand.on.cloud.bigquery(), f"streams.rows_{stand.id}"
    if columns:
        fields = [bigquery.SchemaField(column, "INTEGER") for column in columns]
        client.create_table(bigquery.Table(f"{stand.on.cloud.project}.{name}", fields))
    of_table = PLAN.replace('"topic"', '"table"').replace('"out-{id}"', f'"{name}"')
    stand.plan.write_text(of_table.format(id=stand.id))
    code = stand.run()
    expected = "lacks test_id, scored_at: expected the table" if columns else "cannot be read"
    assert_one_line_error((code, *capsys.readouterr()), 1, f"{name} ", expected)
    assert not stand.subscriptions()


def test_a_stream_that_does_not_run_is_noticed(
    stand: Stand,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stream, "ANSWER_SECONDS", 1.0)
    code = stand.run()
    assert_one_line_error(
        (code, *capsys.readouterr()), 1, "arrived within 1 s: check that the pipeline runs"
    )
    assert not stand.subscriptions()


@pytest.mark.parametrize("topic", ["in", "out", "dead"])
def test_a_topic_that_does_not_exist_is_named(
    stand: Stand, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stand.plan.write_text(PLAN.format(id=stand.id).replace(f'"{topic}-', f'"no-{topic}-'))
    code = stand.run()
    assert_one_line_error(
        (code, *capsys.readouterr()), 1, f"no-{topic}-{stand.id}", "cannot be used"
    )
    assert not stand.subscriptions()


def test_an_interrupted_test_keeps_the_levels_that_it_measured(
    stand: Stand,
    example: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(text: str) -> None:
        print(text)
        if "2 constant" in text:
            raise KeyboardInterrupt

    monkeypatch.setattr(scale_command, "show", interrupt)
    with stand.scoring(example / "model"):
        assert stand.run() == 130
    result = json.loads((stand.folder / "out" / "result.json").read_text())
    assert [level["name"] for level in result["levels"]] == ["2 constant"]
    # Without --row_timings, the steps of the pipeline are one part.
    assert [part["name"] for part in result["levels"][0]["parts"]] == [
        *("sender", "publish", "queue", "pipeline", "encode + sink", "delivery")
    ]
    assert result["interrupted"]
    assert "interrupted: the result is partial" in capsys.readouterr().out
    assert not stand.subscriptions()


def test_an_interrupted_level_is_in_the_result_and_marked(stand: Stand, example: Path) -> None:
    text = PLAN.format(id=stand.id).replace("rate = 200\nseconds = 3", "rate = 50\nseconds = 60")
    stand.plan.write_text(text)
    flags = {"plan": stand.plan, "project": stand.on.cloud.project, "output": stand.folder / "out"}
    command = [sys.executable, "-m", "scale_tests", "stream", *words(flags)]
    with (
        stand.scoring(example / "model"),
        subprocess.Popen(
            command, env=stand.on.environ(), stdout=subprocess.PIPE, text=True
        ) as test,
    ):
        assert test.stdout is not None
        assert "1 warm_up" in test.stdout.readline()
        # Some messages of the level, which follows at once, have results.
        wait_until(lambda: len(stand.output.take(100)) > 20)
        test.send_signal(signal.SIGINT)
        out = test.stdout.read()
    assert test.returncode == 130
    assert "interrupted: the result is partial" in out
    result = json.loads((stand.folder / "out/result.json").read_text())
    (level,) = result["levels"]
    accounts = level["accounts"]
    assert level["interrupted"]
    assert (level["verdict"], level["latencies"]) == ("incomplete", [])
    assert level["reasons"] == ["the test ended during this level"]
    assert accounts["planned"] == sum(accounts[fate.name.lower()] for fate in Fate) > 2_000
    assert accounts["scored"] > 0
    assert accounts["unsent"] > 1_000
    assert accounts["lost"] == 0
    assert "ended during this level" in (stand.folder / "out/report.html").read_text()


def test_a_pipeline_that_is_killed_costs_exactly_the_messages_without_results(
    stand: Stand, example: Path
) -> None:
    text = PLAN.format(id=stand.id).replace("rate = 200\nseconds = 3", "rate = 50\nseconds = 10")
    text = text.replace("[[phases]]", "wait_seconds = 10\n\n[[phases]]", 1)
    stand.plan.write_text(text[: text.rindex("[[phases]]")])
    seen: list[Any] = []
    with stand.scoring(example / "model") as process:

        def kill() -> None:
            # The warm-up has about 20 messages, so the level has most of the results.
            while len(seen) < 80:
                seen.extend(stand.output.take(20))
            process.kill()

        killing = threading.Thread(target=kill)
        killing.start()
        assert stand.run() == 0
        killing.join()
    result = json.loads((stand.folder / "out/result.json").read_text())
    (level,) = result["levels"]
    accounts = level["accounts"]
    # On a busy machine some results come late.
    fates = ("scored", "dead_lettered", "late", "lost")
    assert accounts["planned"] == sum(accounts[fate] for fate in fates)
    assert accounts["scored"] > 0 < accounts["lost"]
    assert level["verdict"] == "not sustained"
    assert any("lost" in reason for reason in level["reasons"])
    # What a reader of its own finds in the topics agrees, message by message.
    seen += stand.output.take(2_000)
    seen += stand.dead.take(2_000)
    there = {json.loads(one.data)["sequence"] for one in seen}
    samples = pq.read_table(stand.folder / "out/samples.parquet")
    lost = samples.filter(np.array(samples["fate"]) == Fate.LOST)["sequence"].to_pylist()
    assert set(lost) == set(samples["sequence"].to_pylist()) - there


def test_a_folder_with_files_is_refused_before_anything_is_sent(
    stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    (stand.folder / "out").mkdir()
    (stand.folder / "out" / "result.json").touch()
    code = stand.run()
    assert_one_line_error((code, *capsys.readouterr()), 1, "out has files: name a new folder")


@pytest.mark.parametrize("source", ["example", "statistics", "file"])
def test_rows_come_from_where_the_plan_says(example: Path, source: str) -> None:
    path = {"statistics": "model", "file": "transactions.parquet"}.get(source, "")
    rows = Rows(source=source, path=str(example / path), faulty=0.25)  # type: ignore[arg-type]
    bodies = make_bodies(rows, seed=1)
    assert 0.2 < bodies.faults(2_000).mean() < 0.3
    good, bad = (json.loads(bodies.message("t", 7, faulty)) for faulty in (False, True))
    assert (good["test_id"], good["sequence"]) == ("t", 7)
    assert isinstance(good["V3"], float)
    assert bad["V3"] == {"fault": True}
    assert make_bodies(rows, seed=1) == bodies


def test_a_file_without_rows_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.parquet", tmp_path / "none.jsonl"):
        with pytest.raises(InputError, match="expected a Parquet or JSON Lines file"):
            make_bodies(Rows(source="file", path=str(path)), seed=1)


def test_a_plan_with_an_error_is_refused_before_anything_is_sent(
    stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    stand.plan.write_text(PLAN.format(id=stand.id).replace("seed = 3", "seed = 0.5"))
    code = stand.run()
    assert_one_line_error((code, *capsys.readouterr()), 2, "plan.toml, line 3: seed: expected")
