"""What the columns of a piece mean: ids, moments, numbers and labels; a value that is none is a mistake.

Ids of any type become text: a whole number is written without a point (``12.0`` in a column of floats is
``12``), so that the same id means the same whatever the type of its column.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from common.errors import ConfigError
from lain.formats.log.rule import Rule, number_of
from lain.formats.log.schema import TimeOptions
from lain.formats.tables import HasPath, Mistakes

SECOND = 1_000_000
"""Moments are whole microseconds since 1970, in UTC."""

_UNITS = {"s": SECOND, "ms": 1000, "us": 1, "ns": 0}
_ISO = (
    r"^(\d{4})-(\d{2})-(\d{2})(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?)?\s*"
    r"(Z|z|UTC|[+-]\d{2}:?\d{2})?$"
)
_STEPS_BELOW = 100_000_000


@dataclass(frozen=True)
class Place:
    """Where a piece stands, for the lines about its mistakes."""

    file: HasPath
    first: int
    mistakes: Mistakes

    def check(self, bad: pl.Series | Bool[np.ndarray, " _"], column: str, line: str, *values: Any) -> None:
        """Note the bad rows; ``{}`` in the line is the value of the first of them."""
        where = bad.to_numpy() if isinstance(bad, pl.Series) else bad
        if where.any():
            shown = [v.to_numpy() if isinstance(v, pl.Series) else v for v in values]
            self.mistakes.check(where, self.file, column, self.first, line, *shown)


@dataclass(frozen=True)
class EntryPlace(Place):
    """Where the entries of the lists of a piece stand: a mistake of an entry is one of its row.

    Args:
        owner: Row of each entry within the piece.
        rows: Number of rows.
    """

    owner: Int[np.ndarray, " entries"]
    rows: int

    def check(self, bad: pl.Series | Bool[np.ndarray, " _"], column: str, line: str, *values: Any) -> None:
        """Note the rows of the bad entries, each with its first one."""
        entries = np.flatnonzero(bad.to_numpy() if isinstance(bad, pl.Series) else bad)
        if not len(entries):
            return
        rows, first = np.unique(self.owner[entries], return_index=True)
        where = np.zeros(self.rows, dtype=bool)
        where[rows] = True
        shown = []
        for value in values:
            of_rows = np.zeros(self.rows, dtype=object)
            of_rows[rows] = [value[int(entry)] for entry in entries[first]]
            shown.append(of_rows)
        super().check(where, column, line, *shown)


def as_text(values: pl.Series) -> pl.Series:
    """Single values as text; whole floats without a point."""
    kind = values.dtype
    if kind.is_float():
        values = values.fill_nan(None)
        whole = values.cast(pl.Int64, strict=False)
        exact = whole.cast(kind) == values
        return pl.select(
            pl.when(exact.fill_null(False)).then(whole.cast(pl.String)).otherwise(values.cast(pl.String))
        ).to_series()
    return values.cast(pl.String)


def is_single(kind: Any) -> bool:
    """Whether a polars type holds single values."""
    return not isinstance(kind, (pl.List, pl.Array, pl.Struct))


def texts(frame: pl.DataFrame, column: str, place: Place) -> pl.Series:
    """A column as text; a list is a mistake."""
    values = frame[column]
    if not is_single(values.dtype):
        place.check(np.ones(len(values), bool), column, "a list where one value is needed")
        return pl.Series(column, [None] * len(values), dtype=pl.String)
    return as_text(values)


def required(values: pl.Series, column: str, place: Place, *, refused: bool = True) -> pl.Series:
    """Ids, of which none may be missing."""
    if refused:
        place.check(values.is_null(), column, "no value")
        return values.fill_null("")
    return values


def numbers(frame: pl.DataFrame, column: str, place: Place, use: str = "") -> pl.Series:
    """A column as numbers, null where there is none; what is no finite number is a mistake."""
    raw = frame[column]
    if not is_single(raw.dtype):
        place.check(np.ones(len(raw), bool), column, "a list where a number is needed")
        return pl.Series(column, np.zeros(len(raw)))
    found = frame.select(number_of(column)).to_series().fill_nan(None)
    if raw.dtype.is_float():
        raw = raw.fill_nan(None)
    place.check(found.is_null() & raw.is_not_null(), column, f"'{{}}' is not a number{use}", raw)
    infinite = found.is_infinite().fill_null(False)
    place.check(infinite, column, "{} is not a finite number", found)
    return found.set(infinite, None)


def lists(frame: pl.DataFrame, column: str, separator: str | None, place: Place) -> pl.Series:
    """A column of lists as lists of text; null where there is no list."""
    raw = frame[column]
    if isinstance(raw.dtype, pl.Array):
        raw = raw.arr.to_list()
    if isinstance(raw.dtype, pl.List):
        if not is_single(raw.dtype.inner):
            place.check(np.ones(len(raw), bool), column, "a list of lists; one list per row can be read")
            return pl.Series(column, [None] * len(raw), dtype=pl.List(pl.String))
        flat = as_text(raw.explode(empty_as_null=False, keep_nulls=False))
        holes = flat.is_null()
        if holes.any():
            owner = np.repeat(np.arange(len(raw)), raw.list.len().fill_null(0).to_numpy())
            bad = np.zeros(len(raw), bool)
            bad[owner[holes.to_numpy()]] = True
            place.check(bad, column, "a list with a missing entry")
        return regroup(flat.fill_null(""), raw)
    text = raw.cast(pl.String)
    if separator is None:
        return pl.select(pl.concat_list(text)).to_series() if len(text) else text.cast(pl.List(pl.String))
    parts = text.str.split(separator)
    return parts.list.eval(pl.element().filter(pl.element() != ""))


def regroup(flat: pl.Series, lists: pl.Series) -> pl.Series:
    """The values of lists, in order, as lists of the same lengths."""
    count = lists.list.len().fill_null(0)
    owner = np.repeat(np.arange(len(lists)), count.to_numpy())
    frame = pl.DataFrame({"owner": owner, "value": flat})
    grouped = frame.group_by("owner", maintain_order=True).agg("value")
    rows = pl.DataFrame({"owner": np.arange(len(lists))})
    found = rows.join(grouped, on="owner", how="left", maintain_order="left")["value"]
    empty = pl.Series([[]], dtype=found.dtype)
    return pl.select(
        pl.when(lists.is_not_null() & found.is_null()).then(empty.first()).otherwise(found)
    ).to_series()


def labels(frame: pl.DataFrame, label: str | Rule, place: Place, *, optional: bool = False) -> pl.Series:
    """Labels 0 and 1 of a column or a rule; null where there is none and there need be none."""
    if isinstance(label, Rule):
        columns = label.columns
        for column in label.numeric:
            numbers(frame, column, place, f", but the label's rule '{label.text}' compares it with one")
        missing = frame.select(pl.any_horizontal(pl.col(c).is_null() for c in columns)).to_series()
        if not optional and "is missing" not in label.text:
            place.check(missing, columns[0], f"no value for the label's rule '{label.text}'")
        found = frame.select(label.expression()).to_series().cast(pl.UInt8)
        return found.set(missing, None) if optional else found
    found = numbers(frame, label, place, "; a label must be 0 or 1, or a rule as 'rating >= 4'")
    if not optional:
        place.check(found.is_null(), label, "no value")
    place.check(
        ~found.fill_null(0).is_in([0.0, 1.0]), label, "a label must be 0 or 1, got {}; or give a rule", found
    )
    return found.cast(pl.UInt8, strict=False)


class Clock:
    """Reads moments; what it finds out from the first piece holds for the whole log.

    Args:
        options: How times are written.
        tolerant: Whether numbers far from the others are let through, to be left out later.

    Raises:
        ConfigError: There is no such time zone.
    """

    def __init__(self, options: TimeOptions, *, tolerant: bool = False) -> None:
        self.options, self.unit, self._tolerant = options, "", tolerant
        self._aware: bool | None = None
        try:
            ZoneInfo(options.zone)
        except (KeyError, ValueError, OSError):
            raise ConfigError(
                f"time.zone: '{options.zone}' is not a time zone, as Europe/Copenhagen"
            ) from None

    def read(self, frame: pl.DataFrame, column: str, place: Place) -> pl.Series:
        """Microseconds since 1970 in UTC; a value that is no moment is a mistake and becomes 0."""
        return self.read_series(frame[column], column, place)

    def read_series(self, raw: pl.Series, column: str, place: Place) -> pl.Series:
        """As :meth:`read`, of a series."""
        if not is_single(raw.dtype):
            place.check(np.ones(len(raw), bool), column, "a list where a time is needed")
            return pl.Series(column, np.zeros(len(raw), np.int64))
        if raw.dtype.is_float():
            raw = raw.fill_nan(None)
        place.check(raw.is_null(), column, "no value")
        if isinstance(raw.dtype, (pl.Datetime, pl.Date)):
            return self._dates(raw, column, place)
        text_options = self.options.format == "text" or "%" in self.options.format
        if raw.dtype == pl.String:
            number = raw.cast(pl.Float64, strict=False)
            if text_options or (
                self.options.format == "auto" and not self.unit and self._mostly_text(number)
            ):
                return self._texts(raw, column, place)
            if self.unit == "text":
                return self._texts(raw, column, place)
            whole = raw.cast(pl.Int64, strict=False)
            bad = number.is_null() & raw.is_not_null()
            place.check(bad, column, "'{}' is not a time like the rows before, which are numbers", raw)
            best = pl.select(pl.coalesce(whole, number.cast(pl.Int64, strict=False))).to_series()
            return self._numbers(best, number, column, place)
        if not raw.dtype.is_numeric():
            place.check(np.ones(len(raw), bool), column, f"a time cannot be of type {raw.dtype}")
            return pl.Series(column, np.zeros(len(raw), np.int64))
        return self._numbers(raw.cast(pl.Int64, strict=False), raw.cast(pl.Float64), column, place)

    @staticmethod
    def _mostly_text(number: pl.Series) -> bool:
        return number.null_count() * 2 > len(number)

    def _numbers(self, whole: pl.Series, exact: pl.Series, column: str, place: Place) -> pl.Series:
        if not self.unit:
            self.unit = self.options.format if self.options.format in _UNITS else _unit_of(exact)
        scale = _UNITS[self.unit]
        if self.options.format == "auto" and not self._tolerant and _typical(exact) >= _STEPS_BELOW:
            other = exact.abs() * (scale or 1e-3)
            strange = ((other > 4.1e15) | (other < 4.1e13)).fill_null(False)  # 1971 and 2100
            line = (f"{{}} is not a time in {self.unit} like the others; give time.format and "
                    "source.drop_times_outside")  # fmt: skip
            place.check(strange, column, line, whole)
        if scale == 0:
            return (whole // 1000).fill_null(0)
        fraction = exact.cast(pl.Float64)
        moments = (fraction * scale).round() if (fraction != whole.cast(pl.Float64)).any() else whole * scale
        return moments.cast(pl.Int64, strict=False).fill_null(0)

    def _dates(self, raw: pl.Series, column: str, place: Place) -> pl.Series:
        if isinstance(raw.dtype, pl.Datetime) and raw.dtype.time_zone is not None:
            return raw.cast(pl.Datetime("us", raw.dtype.time_zone)).dt.timestamp("us").fill_null(0)
        return self._local(raw.cast(pl.Datetime("us")), column, place)

    def _local(self, naive: pl.Series, column: str, place: Place) -> pl.Series:
        """Moments of a local clock; of an hour that comes twice a year the first one is taken."""
        aware = naive.dt.replace_time_zone(self.options.zone, ambiguous="earliest", non_existent="null")
        gone = aware.is_null() & naive.is_not_null()
        place.check(gone, column, f"'{{}}' does not exist in the time zone {self.options.zone}", naive)
        return aware.dt.timestamp("us").fill_null(0)

    def _texts(self, raw: pl.Series, column: str, place: Place) -> pl.Series:
        self.unit = "text"
        if "%" in self.options.format:
            try:
                found = raw.str.to_datetime(self.options.format, time_unit="us", strict=False)
            except pl.exceptions.PolarsError as error:
                what = str(error).splitlines()[0]
                raise ConfigError(f"time.format: '{self.options.format}' ({what})") from error
            bad = found.is_null() & raw.is_not_null()
            place.check(bad, column, f"'{{}}' is not a time written as {self.options.format}", raw)
            if isinstance(found.dtype, pl.Datetime) and found.dtype.time_zone is not None:
                return found.dt.timestamp("us").fill_null(0)
            return self._local(found, column, place)
        group = raw.str.extract_groups(_ISO).struct
        part = [group[i] for i in range(8)]
        clock = pl.select(
            pl.concat_str(
                part[0], pl.lit("-"), part[1], pl.lit("-"), part[2], pl.lit("T"), part[3].fill_null("00"),
                pl.lit(":"), part[4].fill_null("00"), pl.lit(":"), part[5].fill_null("00"),
                pl.lit("."), part[6].fill_null("0").str.slice(0, 6).str.pad_end(6, "0"),
            )
        ).to_series()  # fmt: skip
        naive = clock.str.to_datetime("%Y-%m-%dT%H:%M:%S%.6f", time_unit="us", strict=False)
        bad = naive.is_null() & raw.is_not_null()
        place.check(bad, column, "'{}' is not a time (a number, or ISO 8601 as 2024-05-31 14:03:00); "
                    "give time.format", raw)  # fmt: skip
        zone = part[7]
        aware = zone.is_not_null()
        good = ~bad & raw.is_not_null()
        if self._aware is None and good.any():
            self._aware = bool(aware.filter(good).first())
        mixed = good & (aware != bool(self._aware))
        said = "a" if self._aware else "no"
        place.check(mixed, column, f"'{{}}': the rows before have {said} time zone; write all alike", raw)
        if not self._aware:
            return self._local(naive, column, place)
        digits = zone.str.replace(":", "")
        sign = pl.select(pl.when(digits.str.starts_with("-")).then(-1).otherwise(1)).to_series()
        hours = digits.str.slice(1, 2).cast(pl.Int64, strict=False).fill_null(0)
        minutes = digits.str.slice(3, 2).cast(pl.Int64, strict=False).fill_null(0)
        offset = sign * (hours * 60 + minutes) * 60 * SECOND
        return (naive.dt.timestamp("us") - offset).fill_null(0)

    def moment(self, text: str, setting: str) -> int:
        """A moment that a schema names.

        Raises:
            ConfigError: It is none.
        """
        if self.unit in _UNITS and text.lstrip("-").isdigit():
            return int(text) * _UNITS[self.unit] if _UNITS[self.unit] else int(text) // 1000
        clock = Clock(TimeOptions(format="text", zone=self.options.zone))
        mistakes = Mistakes()
        here = Place(_Named(Path(setting)), 0, mistakes)
        found = clock.read_series(pl.Series([text]), setting, here)
        if mistakes:
            raise ConfigError(f"{setting}: '{text}' is not a time, as 2024-05-31 or 2024-05-31 14:03:00")
        return int(found[0])


@dataclass(frozen=True)
class _Named:
    path: Path


def _typical(values: pl.Series) -> float:
    """Median size."""
    there = values.abs().drop_nulls().to_numpy()
    return float(np.median(there)) if len(there) else 0.0


def _unit_of(values: pl.Series) -> str:
    """The unit in which times lie between 1973 and 2100; small ones are steps, read as seconds."""
    size = _typical(values)
    return next((unit for unit, least in (("ns", 1e17), ("us", 1e14), ("ms", 1e11)) if size >= least), "s")
