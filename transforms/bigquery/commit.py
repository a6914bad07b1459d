"""TableCommit: a run's staged files into a table of BigQuery, all of them or none, never twice.

Load jobs put the files into a table of the attempt, and one job puts that table's rows
into the destination: a copy, or a query where a copy cannot do it. Job ids are derived
from what makes a run the same again, so that whatever is repeated finds what was done:

    crash before that one job     the table of the attempt expires; a rerun starts over
    crash after it                a rerun finds it and replaces the rows of its run
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from google.cloud import bigquery

from common.errors import BalanceError, OutputError
from transforms.bigquery.jobs import done_job, job_id
from transforms.bigquery.load import OF_PIPELINE, PIPELINE, RUN_ID, TableJobs, run_table
from transforms.bigquery.placed_rows import Span, is_of_model, rows_of, span_of
from transforms.bigquery.replay_marks import ReplayMarks
from transforms.files.run_folder import StagedFile
from transforms.lineage import Lineage

# BigQuery's limit of source files of one load job.
FILES_A_LOAD = 10_000
# Of a run's provenance, what makes it the same run again. Neither the model's version nor its
# digest: the rows of a mended model take the place of the broken one's.
IDENTITY = (RUN_ID, PIPELINE, "model_name")


@dataclass(frozen=True)
class TableCommit(TableJobs):
    """What an attempt at a run does to a table, as it found it. lineage: of a replay."""

    lineage: Lineage | None = None

    def is_done(self) -> bool:
        """Whether this very attempt's rows are in the table: the step is repeated.

        Raises BalanceError where not all of them are.
        """
        job = done_job(self.client, self._attempt_job, self.table.location, self.cloud)
        job = job or self.earlier()
        if job is None or not self.is_ours(job):
            return False
        self.check_rows(job)
        return True

    def earlier(self) -> Any:
        """The job of any attempt that put this run's rows into the table, None if none did."""
        return done_job(self.client, self._run_job, self.table.location, self.cloud)

    def filled_it(self) -> bool:
        """Whether an earlier attempt at this run put its rows into this very table."""
        return self._is_in_table(self.earlier())

    def _is_in_table(self, earlier: Any) -> bool:
        return earlier is not None and bool(earlier.ended >= self.table.created)

    def check_pipeline(self) -> None:
        """Raises OutputError where rows of another pipeline would be taken for this run's.

        Scores have no column that tells a pipeline.
        """
        if PIPELINE in self._keys_of_job or self.write_disposition == "truncate":
            return
        earlier = self.earlier()
        other = earlier and earlier.labels.get(OF_PIPELINE)
        if self._is_in_table(earlier) and other != self.provenance.pipeline:
            raise OutputError(
                f"table {self.name} has rows of run {self.folder.run_id} with model "
                f"{self.provenance.model_name} that {other} wrote, which could not be told from "
                "those of this run: choose another --run_id"
            )

    def load(self, files: Sequence[StagedFile]) -> None:
        """Staged files -> the attempt's table, of the destination's form if it can be copied.

        Raises BalanceError.
        """
        run_table = self.make_run_table()
        config = bigquery.LoadJobConfig(
            source_format="PARQUET",
            decimal_target_types=["NUMERIC", "BIGNUMERIC"],
            write_disposition="WRITE_APPEND",
            create_disposition="CREATE_NEVER",
            labels=self.labels,
        )
        # Without this a list would become a record of a repeated record.
        config.parquet_options = bigquery.ParquetOptions()
        config.parquet_options.enable_list_inference = True
        paths = sorted(file.path for file in files if file.rows)
        loaded = 0
        for uris in (paths[i : i + FILES_A_LOAD] for i in range(0, len(paths), FILES_A_LOAD)):
            # The time tells the table from one of the same name that has expired.
            name = job_id("load", str(run_table.reference), str(run_table.created), *uris)
            load = self.client.load_table_from_uri
            job = self.run(name, load, uris, run_table.reference, job_config=config)
            loaded += job.output_rows
        if loaded != self.rows:
            raise BalanceError(
                f"{self.rows:,} rows were staged for table {self.name}, and {loaded:,} loaded: "
                "nothing was put into it. Please report this"
            )

    def place(self, files: Sequence[StagedFile]) -> None:
        """The attempt's table, which has the rows of these files -> its rows in the destination.

        Those of earlier attempts are gone then. Raises OutputError where that cannot be,
        BalanceError where fewer rows came there than the files have.
        """
        replace(self, marks=self.marks_of(files))._place()

    def _place(self) -> None:
        """One job, or none where an earlier one did it."""
        replayed = self.replayed()
        if self.lineage is not None:
            self._replay_marks.add(self.lineage)
        earlier = self.earlier() or self._put(self._run_job, replayed)
        if self.is_ours(earlier):
            self.check_rows(earlier)
            return
        # Another attempt's rows are there: a crashed one's, or one's that runs beside this.
        if self.write_disposition == "truncate":
            self.replace_all(self._attempt_job)
        elif self.keys:
            self.check_pipeline()
            self.replace_own(self._attempt_job, replayed)
        elif not self._holds(earlier):
            self.append(self._attempt_job)

    def _put(self, name: str, replayed: Sequence[str]) -> Any:
        """A job's id, and replays whose rows make room -> the job, done."""
        if self.write_disposition == "truncate":
            return self.replace_all(name)
        return self.replace_own(name, replayed) if replayed else self.append(name)

    def replayed(self) -> list[str]:
        """Replays whose rows in the table stand for rows of this run, by run id.

        Of a replay, those of which it takes all letters. Raises OutputError where a row would be
        there twice.
        """
        if self.write_disposition == "truncate":
            return []
        marks, own = self._replay_marks, self.folder.run_id
        origins = {own}
        if self.lineage is not None:
            origins = {origin for run in self.lineage.runs for origin in marks.origins(run)}
        known = marks.replays(origins)
        found = known.keys() - {own}
        if found and RUN_ID not in self.keys:
            self._refuse_replayed(found, origins)
            return []
        present = self.runs_in_table(sorted(found)) if found else []
        if self.lineage is None:
            for run in present:
                self._check_alone(run, marks.origins(run) - origins)
            return present
        relations = {run: self.lineage.to(known[run], known) for run in present}
        for run, relation in relations.items():
            if relation == "overlaps":
                raise OutputError(
                    f"run {run} has replayed some of these dead letters into table {self.name}, "
                    "whose rows would be there twice: choose filters that take all of its letters, "
                    "or none"
                )
        return [run for run, relation in relations.items() if relation == "covers"]

    def _refuse_replayed(self, found: Iterable[str], origins: Iterable[str]) -> None:
        """Raises OutputError, unless the table is empty."""
        if self.table.num_rows:
            raise OutputError(
                f"table {self.name} has rows of run {', '.join(sorted(origins))} that were "
                f"replayed by {', '.join(sorted(found))}; without a column {RUN_ID} they cannot be "
                "replaced: write to another table, or say --write_disposition truncate"
            )

    def _check_alone(self, run: str, others: Collection[str]) -> None:
        """A replay, and other runs than this whose letters it took. Raises OutputError for any."""
        if others:
            raise OutputError(
                f"run {run} has replayed dead letters of this run and of "
                f"{', '.join(sorted(others))} into table {self.name}, and its rows cannot be told "
                f"apart: delete them (DELETE FROM `{self.name}` WHERE {RUN_ID} = '{run}'), run "
                "again, and replay the others"
            )

    @property
    def _replay_marks(self) -> ReplayMarks:
        return ReplayMarks(self.client, self.cloud, self.name, self.table.location)

    @property
    def _run_job(self) -> str:
        """The job that puts a run's rows into the table, whichever attempt starts it."""
        return job_id("commit", str(self.name), *self._identity)

    @property
    def _attempt_job(self) -> str:
        """The job by which this attempt puts its rows in the place of an earlier one's."""
        return job_id("replace", str(self.name), *self._identity, self.folder.token)

    @property
    def _keys_of_job(self) -> tuple[str, ...]:
        """What tells this run's job from others: what its rows tell, or all where they do not."""
        return self.keys or IDENTITY

    @property
    def _identity(self) -> list[str]:
        return [getattr(self.provenance, name) for name in self._keys_of_job]

    def _holds(self, earlier: Any) -> bool:
        """Whether an earlier job's rows are still in a table without a column that tells a run's.

        Raises OutputError where they cannot be told from others, where only some are there, or
        where those of now differ: none can be replaced.
        """
        there, span = rows_of(earlier) or 0, span_of(earlier)
        found = self._look_for(earlier, span)
        if found.known == 0 or there == 0:
            return False
        is_whole = found.own == there == self.rows and (
            (found.first, found.last) == (span.first, span.last)
            if span
            else found.known == found.own
        )
        if is_whole and is_of_model(earlier, self.provenance.model_digest):
            return True
        advice = (
            f"without a column {RUN_ID} the earlier ones cannot be replaced: choose another "
            "--run_id, or --write_disposition truncate"
        )
        was = f"run {self.folder.run_id} was put into table {self.name} before, with {there:,} rows"
        if is_whole:
            raise OutputError(f"{was} of another model file, and {advice}")
        if found.known > there or found.own > there:
            raise OutputError(
                f"{was}; other rows with the same ids are there too, of which {found.own:,} cannot "
                f"be told from these, and {advice}"
            )
        raise OutputError(
            f"{was}, of which {min(found.own, there):,} are found; now it has {self.rows:,}, and "
            f"{advice}"
        )

    def _look_for(self, earlier: Any, span: Span | None) -> Any:
        """An earlier job and the span of its rows -> what the table has of the attempt's ids.

        known: rows, own: those that are of that time, first and last: the time of these.
        """
        key, time = self.schema.names[0], f"UNIX_MICROS(`{self.time_column}`)"
        own = "TRUE"
        if span is not None:
            own = f"{time} BETWEEN {span.first} AND {span.last}"
        elif self.time_column:
            own = f"`{self.time_column}` <= @ended"
        times = f"MIN(IF({own}, {time}, NULL)) AS first, MAX(IF({own}, {time}, NULL)) AS last"
        source = self.every_row if self.copies else "TRUE"
        sql = (
            f"SELECT COUNT(*) AS known, COUNTIF({own}) AS own, "
            f"{times if self.time_column else 'NULL AS first, NULL AS last'} FROM `{self.name}` "
            f"WHERE {self.every_row} AND `{key}` IN (SELECT `{key}` FROM "
            f"`{run_table(self.name, self.folder)}` WHERE {source})"
        )
        ended = bigquery.ScalarQueryParameter("ended", "TIMESTAMP", earlier.ended)
        config = bigquery.QueryJobConfig(query_parameters=[ended] if "@ended" in sql else [])
        job = self.client.query(sql, config, location=self.table.location, retry=self.retry)
        (found,) = job.result(retry=self.retry)
        return found
