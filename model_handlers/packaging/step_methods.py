"""The steps as methods. Written by tools/step_methods.py: do not edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from model_handlers.steps.general import RawName
from model_handlers.steps.lists import Keep, Side
from model_handlers.steps.times import Part


class StepMethods:
    """Methods that return a column, an output or a field with one more step."""

    def _then(self, step: str, **members: Any) -> Self:
        raise NotImplementedError

    def cast(self, to: RawName) -> Self:
        """Converts cells to another type, as the values of a column are converted to its raw
        type.
        """
        return self._then("cast", to=to)

    def fill(self, value: float | int | str | bool) -> Self:
        """Puts `value` where a cell is null; NaN of the source counts as null.

        The value can be fitted on a sample: the mean, the median or the most frequent value.

        It can be fitted on the sample: fills with the mean, the median or the most frequent
        value of a sample.
        """
        return self._then("fill", value=value)

    def clip(self, min: float | None = None, max: float | None = None) -> Self:
        """Limits numbers to the range from `min` to `max`; either may be left out."""
        return self._then("clip", min=min, max=max)

    def log1p(self) -> Self:
        """Computes ln(1 + x).

        Refuses numbers of -1 and less.
        """
        return self._then("log1p")

    def scale(self, mean: float | None = None, std: float | None = None) -> Self:
        """Computes (x - `mean`) / `std`.

        The values can be fitted on a sample.

        Without mean and std, it is fitted on the sample: scales with the mean and the
        standard deviation of a sample.
        """
        return self._then("scale", mean=mean, std=std)

    def bucket(self, edges: Sequence[float] | None = None, *, count: int | None = None) -> Self:
        """Returns how many of the `edges` are at most x, an integer from 0.

        The edges can be fitted on a sample.

        Without edges, it is fitted on the sample: divides the values of a sample into `count`
        buckets of about the same size.
        """
        return self._then("bucket", edges=edges, count=count)

    def add(self, other: float | str) -> Self:
        """Computes x + `other`: a number, or the name of a column (in fields: of a field or
        output).
        """
        return self._then("add", other=other)

    def subtract(self, other: float | str) -> Self:
        """Computes x - `other`: a number, or the name of a column (in fields: of a field or
        output).
        """
        return self._then("subtract", other=other)

    def multiply(self, other: float | str) -> Self:
        """Computes x * `other`: a number, or the name of a column (in fields: of a field or
        output).
        """
        return self._then("multiply", other=other)

    def divide(self, other: float | str, *, by_zero: float | None = None) -> Self:
        """Computes x / `other`: a number, or the name of a column (in fields: of a field or
        output).

        `by_zero` is the result of a division by 0. Without it, such a row is refused.
        """
        return self._then("divide", other=other, by_zero=by_zero)

    def sigmoid(self) -> Self:
        """Computes 1 / (1 + exp(-x)), which turns a logit into a probability."""
        return self._then("sigmoid")

    def lower(self) -> Self:
        """Writes text in lower case."""
        return self._then("lower")

    def strip(self) -> Self:
        """Removes white space at both ends of text.

        Text of white space only becomes null.
        """
        return self._then("strip")

    def vocabulary(
        self,
        file: str | Sequence[str] | None = None,
        values: Sequence[str] = (),
        *,
        most: int | None = None,
        unknown: int | None = None,
        hash_unknown: int | None = None,
    ) -> Self:
        """Returns the position of a value in a list, counted from 0.

        The list is in `file`, one value in each line, or in `values`. Numbers are looked up
        by their text. A value that is not in the list gets `unknown`, or one of
        `hash_unknown` positions after the end of the list. Without both, its row is refused.

        Without file and values, it is fitted on the sample: looks values up in the list of
        those that a sample has, the most frequent first. The list has at most `most` values.
        The position `unknown`, if it is within the list, is kept free for other values.
        """
        return self._then(
            "vocabulary",
            file=file,
            values=values,
            most=most,
            unknown=unknown,
            hash_unknown=hash_unknown,
        )

    def hash(self, buckets: int) -> Self:
        """Returns one of `buckets` integers from 0, the same for the same text or number.

        It is the number in the first 8 bytes of the BLAKE2b digest of the text, little-
        endian, modulo `buckets`.
        """
        return self._then("hash", buckets=buckets)

    def one_hot(self, size: int) -> Self:
        """Returns `size` numbers, all 0 but the one at the position that the integer names, 1."""
        return self._then("one_hot", size=size)

    def time_part(self, part: Part, zone: str | None = None, cyclic: bool = False) -> Self:
        """Returns a `part` of a time: minute, hour, weekday, day, day_of_year, month or year.

        The weekday is 0 on Mondays. The parts of a timestamp are those in the time zone
        `zone`. With `cyclic`, the result is the sine and the cosine of the part's place in
        its cycle, so that 23:00 is close to 0:00.
        """
        return self._then("time_part", part=part, zone=zone, cyclic=cyclic)

    def epoch(self) -> Self:
        """Returns the seconds since 1970-01-01, with fractions.

        Times without a zone count as UTC.
        """
        return self._then("epoch")

    def assume_zone(self, zone: str) -> Self:
        """Turns a datetime, which has no zone, into a timestamp: a clock in `zone` showed it.

        If clocks showed a time twice, because they were set back, the first one is meant. If
        they never showed it, because they were set forward, it counts as if they had been set
        later: 2:30 is 3:30.
        """
        return self._then("assume_zone", zone=zone)

    def pad(
        self, to: int, value: float = 0.0, *, keep: Keep | None = None, side: Side = "end"
    ) -> Self:
        """Extends lists of numbers with `value` to `to` items, and shortens longer lists.

        A list with an item that is null is refused. `keep` says which items of a longer list
        stay, `first` or `last`; without it, its row is refused. `side` says where a shorter
        list is extended, at its `end` or its `start`.
        """
        return self._then("pad", to=to, value=value, keep=keep, side=side)

    def mask(self, to: int, *, keep: Keep | None = None, side: Side = "end") -> Self:
        """Returns 1 for each place in which `pad` with the same members puts an item, 0 for
        others.
        """
        return self._then("mask", to=to, keep=keep, side=side)

    def length(self, to: int, *, keep: Keep | None = None, side: Side = "end") -> Self:
        """Returns how many items of a list `pad` with the same members keeps."""
        return self._then("length", to=to, keep=keep, side=side)

    def argmax(self) -> Self:
        """Returns the position of the largest number, the first one if several are equal."""
        return self._then("argmax")

    def max(self) -> Self:
        """Returns the largest number."""
        return self._then("max")

    def element(self, at: int) -> Self:
        """Returns the number at the position `at`, counted from 0."""
        return self._then("element", at=at)

    def softmax(self) -> Self:
        """Turns logits into probabilities, which add up to 1."""
        return self._then("softmax")

    def names(self, file: str | Sequence[str] | None = None, values: Sequence[str] = ()) -> Self:
        """Returns the name of a position, counted from 0.

        The names are in `file`, one in each line, or in `values`.
        """
        return self._then("names", file=file, values=values)

    def top_k(
        self, file: str | Sequence[str] | None = None, values: Sequence[str] = (), k: int = 5
    ) -> Self:
        """Returns the `k` largest numbers with the names of their positions, the largest first.

        The names are in `file`, one in each line, or in `values`. Each of the results has a
        `name` and a `value`.
        """
        return self._then("top_k", file=file, values=values, k=k)

    def cut(self, at: Sequence[float], names: Sequence[str]) -> Self:
        """Turns a number into a decision: the first of `names` below the first number of `at`.

        A number that equals one of `at` gets the name above it. There is one name more than
        `at` has numbers. `--thresholds` of a run replaces `at`.
        """
        return self._then("cut", at=at, names=names)

    def call(
        self,
        function: str,
        columns: Sequence[str] = (),
        *,
        returns: RawName = "float64",
        width: int | None = None,
        source_sha256: str | None = None,
    ) -> Self:
        """Calls your own function, `module:function`, on whole columns.

        The function gets the Arrow array of the column, and one array for each of `columns`.
        It returns an Arrow or NumPy array with a value for each row, of the type `returns`;
        with `width`, an array [rows, width] of numbers. Its module must be installed, and
        named in `--trusted_modules`. The value of a row must not depend on other rows.
        `source_sha256` is the digest of the module's source; a run warns if it differs.
        """
        return self._then(
            "call",
            function=function,
            columns=columns,
            returns=returns,
            width=width,
            source_sha256=source_sha256,
        )
