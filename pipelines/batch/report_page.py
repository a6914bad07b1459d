"""The page about a batch run, from its report: the counts come first, then scores, model and files.

The page shows no value of a row, except those of the dead letters that it is given as examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from common.html_pages.page import (
    Chart,
    Section,
    Spec,
    Table,
    Text,
    drawing_script,
    write_page,
)
from pipelines.batch.report_text import decision_facts
from transforms.dead_letter_examples import Examples

# How many files, and kinds of dead letters, the page lists: a run may have 100,000.
MOST_FILES = 200
MOST_KINDS = 40
Report = Mapping[str, Any]


@dataclass(frozen=True)
class RunPage:
    """Writes the page about a run.

    Attributes:
        script: The script that draws charts. It travels with the run, because workers may lack
            vl-convert.
    """

    script: str

    @classmethod
    def make(cls) -> RunPage:
        """Return what writes pages. Raise UsageError if vl-convert is not installed."""
        return cls(drawing_script())

    def __call__(self, report: Report, examples: Sequence[Examples]) -> bytes:
        """Return the HTML of a run.

        Args:
            report: The content of report.json.
            examples: Examples of dead letters.
        """
        title = f"Run {report['run_id']}"
        return write_page(title, sections(report, examples), self.script).encode()


def sections(report: Report, examples: Sequence[Examples] = ()) -> Iterator[Section]:
    """Yield the parts of the page of a run.

    Args:
        report: The content of report.json.
        examples: Examples of dead letters.
    """
    yield Section("", [*_lead(report)])
    yield Section("Balance", [_balance(report), _destinations(report)])
    if report["dead_letters"]:
        yield Section("Dead letters", [*_dead_letters(report), *map(_examples, examples)])
    if report["score_output"] is not None and report["scores"] is not None:
        yield Section("Scores", [*_scores(report)])
    if decisions := decision_facts(report.get("decisions", {})):
        lines = [[text] for _, text in decisions]
        yield Section("Decisions", [Table(head=["field and values"], rows=lines)])
    if report["rows_over_time"] is not None:
        over_time = Chart(
            spec=_rates(report["rows_over_time"]), caption="Rows that were scored, per second."
        )
        yield Section("Rows over time", [over_time])
    yield Section("Model", [_model(report)])
    yield Section("Files", [*_files(report)])
    yield Section("Run", [_run(report)])


def _seconds(report: Report) -> float:
    started, finished = (
        datetime.fromisoformat(report[f"{at}_at"]) for at in ("started", "finished")
    )
    return (finished - started).total_seconds()


def _lead(report: Report) -> Iterator[Text]:
    yield Text(
        f"{report['rows_in']:,} rows read by {report['pipeline']}: {report['rows_scored']:,} "
        f"scored, {report['rows_dead_lettered']:,} dead letters, in {_seconds(report):,.1f} s.",
        "lead",
    )
    if report["too_many_dead_letters"]:
        limit = report["max_dead_letter_share"]
        yield Text(f"The run failed: more than {limit:.2%} of its rows are dead letters.", "notice")
    if report["too_few_rows"]:
        yield Text(f"The run failed: expected at least {report['min_rows']:,} rows.", "notice")


def _balance(report: Report) -> Table:
    rows = [
        ["read", report["rows_in"]],
        ["scored", report["rows_scored"]],
        ["dead letters", report["rows_dead_lettered"]],
    ]
    source = [
        [f"{unit} {said}", report[f"{unit}_{said}"]]
        for unit in ("files", "bytes", "streams", "messages")
        for said in ("expected", "read")
        if f"{unit}_{said}" in report
    ]
    expected = [["rows expected by the source", report["rows_expected"]], *source]
    agree = "Rows read = scored + dead letters." if report["balanced"] else "The counts differ."
    return Table(head=["", "number"], rows=[*rows, *expected], caption=agree)


def _destinations(report: Report) -> Table:
    rows = [*report["rows_written"].items()]
    return Table(head=["destination", "rows written"], rows=rows, caption="Rows by destination.")


def _dead_letters(report: Report) -> Iterator[Chart | Table | Text]:
    by_reason: Counter[tuple[str, str]] = Counter()
    for kind in report["dead_letters"]:
        by_reason[kind["reason"], kind["stage"]] += kind["rows"]
    data = [{"reason": r, "stage": s, "rows": n} for (r, s), n in by_reason.most_common()]
    yield Chart(spec=_bars(data), caption="Dead letters by reason.")
    total = report["rows_in"]
    yield Table(
        head=["reason", "stage", "rows", "share of the rows read"],
        rows=[[*kind, rows, f"{rows / total:.2%}"] for kind, rows in by_reason.most_common()],
    )
    kinds = [kind for kind in report["dead_letters"] if kind["column"]]
    if kinds:
        yield Table(
            head=["column", "reason", "rows"],
            rows=[[kind["column"], kind["reason"], kind["rows"]] for kind in kinds[:MOST_KINDS]],
            caption="Dead letters by the column at fault.",
        )
    if (more := len(kinds) - MOST_KINDS) > 0:
        yield Text(f"{more:,} more columns and reasons are listed in report.json.")


def _examples(examples: Examples) -> Table:
    return Table(
        head=["reason", "stage", "row", "column", "message", "content"],
        rows=[
            [reason, stage, one.row_id, one.column, one.message, one.payload]
            for (stage, reason), found in sorted(examples.items())
            for one in found
        ],
        caption="Examples of dead letters, which contain values of rows.",
    )


def _scores(report: Report) -> Iterator[Chart | Table]:
    names = ("mean", "std", "min", "max")
    figures = [report["scores"][name] for name in names]
    yield Table(head=["output", *names], rows=[[report["score_output"], *map(_exact, figures)]])
    found = report["score_histogram"]
    edges, counts = found["edges"], found["rows"]
    rows = [{"from": edges[i], "to": edges[i + 1], "rows": n} for i, n in enumerate(counts) if n]
    caption = "How many rows have a score in each interval."
    yield Chart(spec=_histogram(rows, found["scale"]), caption=caption)


def _exact(value: float) -> str:
    return f"{value:.6g}"


def _model(report: Report) -> Table:
    model = report["model"]
    rows = [[name, str(model[name])] for name in ("name", "version", "digest")]
    dependence = model.get("batch_dependence")
    if dependence is not None:
        rows.append(["accepted dependence on the batch", _exact(dependence)])
    if "prepared_at" in report:
        rows.append(["rows prepared at", report["prepared_at"]])
    precisions = report.get("precision", {}).items()
    rows += [[f"rows in {name}", f"{count:,}"] for name, count in precisions]
    for name, found in report.get("thresholds", {}).items():
        rows.append([f"thresholds of {name}", ", ".join(map(_exact, found["at"]))])
    return Table(head=["", "model"], rows=rows)


def _files(report: Report) -> Iterator[Table | Text]:
    files = [
        [file["name"], file["rows"], file["bytes"]]
        for listed in report["files"].values()
        for file in listed
    ]
    if not files:
        yield Text("The run wrote no files.")
        return
    yield Table(head=["file", "rows", "bytes"], rows=files[:MOST_FILES])
    if (more := len(files) - MOST_FILES) > 0:
        yield Text(f"{more:,} more files are listed in report.json.")


def _run(report: Report) -> Table:
    read = report["input"]
    more = f"{len(read) - MOST_FILES:,} more" if len(read) > MOST_FILES else ""
    return Table(
        head=["", "run"],
        rows=[
            ["run id", report["run_id"]],
            ["attempt", report["attempt"]],
            ["started", report["started_at"]],
            ["finished", report["finished_at"]],
            ["input", (*read[:MOST_FILES], *filter(None, [more]))],
            ["rows counted by", report["rows_expected_from"] or ""],
            ["scores", tuple(report["output"])],
            ["dead letters", tuple(report["dead_letter_output"])],
            ["report", report["report"]],
        ],
    )


def _spec(data: Sequence[Mapping[str, Any]], height: int, mark: str) -> dict[str, Any]:
    return {
        "width": "container",
        "height": height,
        "data": {"values": [*data]},
        "mark": {"type": mark, "tooltip": {"content": "data"}},
    }


def _bars(data: Sequence[Mapping[str, Any]]) -> Spec:
    reason = {"field": "reason", "type": "nominal", "title": None, "sort": None}
    encoding = {
        "y": reason,
        "x": {"field": "rows", "type": "quantitative", "title": "rows"},
        "color": {"field": "stage", "type": "nominal", "title": "stage"},
    }
    # Vega warns about a width that fits if the height follows from a step.
    height = 24 * max(len({row["reason"] for row in data}), 1)
    return _spec(data, height, "bar") | {"encoding": encoding}


def _histogram(data: Sequence[Mapping[str, Any]], scale: str) -> Spec:
    return _spec(data, 220, "rect") | {
        "encoding": {
            "x": {
                "field": "from",
                "type": "quantitative",
                "title": "score",
                "scale": {"type": scale, "nice": False, "zero": False},
            },
            "x2": {"field": "to"},
            "y": {"field": "rows", "type": "quantitative", "title": "rows"},
            "y2": {"datum": 0},
        }
    }


def _rates(found: Mapping[str, Any]) -> Spec:
    span = found["span_seconds"]
    data = [
        {"s": i * span, "until": (i + 1) * span, "rows": n, "rows/s": n / span}
        for i, n in enumerate(found["rows"])
    ]
    return _spec(data, 180, "rect") | {
        "encoding": {
            "x": {"field": "s", "type": "quantitative", "title": "seconds since the first row"},
            "x2": {"field": "until"},
            "y": {"field": "rows/s", "type": "quantitative", "title": "rows/s"},
            "y2": {"datum": 0},
        }
    }
