"""The demo of scale tests runs on the emulators, searches a rate, and writes its page."""

import json
from pathlib import Path

import pytest
from chromium import look_at
from libraries import need_library
from stand_ins import need_emulators

from examples.transactions import demo_scale

PLAN = """\
target = "stream"
send_to = "scale-demo-input"

[objective]
percentile = 50
latency_ms = 60_000

[sender]
late_ms = 60_000
cpu = 1

[rows]
faulty = 0.05

[result]
source = "topic"
name = "scale-demo-output"
dead_letters = "scale-demo-dead-letters"

[[phases]]
kind = "bisection"
lowest = 20
highest = 40
seconds = 6
precision = 1
"""


@pytest.mark.slow
def test_the_demo_searches_a_rate_and_names_its_page(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_emulators(pubsub=True)
    for library in ("hdrh", "scipy", "vl_convert"):
        need_library(library)
    plan, folder = tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text(PLAN)
    argv = ["--plan", str(plan), "--example", str(example), "--output", str(folder)]
    assert demo_scale.main(argv) == 0
    assert f"done; see {folder}/report.html" in capsys.readouterr().out
    result = json.loads((folder / "result.json").read_text())
    assert result["levels"]
    for level in result["levels"]:
        accounts = level["accounts"]
        assert accounts["planned"] == accounts["scored"] + accounts["dead_lettered"] > 0
        assert level["verdict"] == "sustained"
    (found,) = [one for one in result["findings"] if one["name"] == "largest sustained rate"]
    assert found["value"] == 40
    assert found["evidence"]
    page = look_at((folder / "report.html").read_text(), tmp_path / "page.html")
    assert page["errors"] == []
    assert page["charts"] == page["drawn"] > 0
