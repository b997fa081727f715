"""One pass over the files: every piece checked, typed, and put on disk as the later passes want it.

Columns of the spool: ``u`` and ``i`` ids as text; ``t`` moment; ``y`` label; ``s`` split or -1; ``b`` whether
the row is a behaviour, ``r`` whether it is one to learn from; ``f:NAME`` a feature, ``c:NAME`` a column of
the behaviour; ``h``, ``ht`` a given history and its times.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from common.errors import ConfigError
from lain.formats.log.plan import Plan, past_ids
from lain.formats.log.rule import Rule
from lain.formats.log.schema import SPLITS
from lain.formats.log.spool import Spool
from lain.formats.log.values import EntryPlace, Place, labels, lists, numbers, regroup, required, texts
from lain.formats.log.vocabulary import stable_hash

SEQUENCE = "sequence"
"""Name of the behaviour column that says which of several sequences a behaviour is in."""

UNNAMED = "\x1f"
"""Begins the key of an item that has no id, and stands before each of the features it is known by."""


class Scan:
    """Reads the files of a plan into spools.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.dropped: dict[str, int] = {}
        self._row = self._spooled = 0
        bounds = plan.schema.source.drop_times_outside
        if bounds is not None and len(bounds) != 2:
            raise ConfigError(f"source.drop_times_outside: must be [from, to], got {bounds}")

    def rows(self, spool: Spool) -> None:
        """The log itself."""
        for file, split in self.plan.rows:
            wanted = [column for column in self.plan.log_columns() if column in file.columns]
            with self.plan.mistakes.noted():
                for first, frame in file.pieces(wanted, self.plan.progress):
                    spool.write(self._rows(frame, Place(file, first, self.plan.mistakes), split))

    def past(self, spool: Spool) -> None:
        """More behaviours from other files."""
        plan = self.plan
        for file in plan.past:
            ids = past_ids(plan.schema)
            wanted = plan.past_columns()
            with plan.mistakes.noted():
                for first, frame in file.pieces(wanted, plan.progress):
                    place = Place(file, first, plan.mistakes)
                    found = {"u": self._ids(frame, ids[0], place)}
                    if plan.schema.history.known_by:
                        columns = plan.schema.history.known_by.values()
                        found["i"] = _unnamed([texts(frame, column, place) for column in columns])
                    else:
                        found["i"] = self._ids(frame, ids[1], place)
                    found["t"] = plan.clock.read(frame, ids[2], place)
                    found |= self._events(frame, place)
                    spool.write(self._kept(pl.DataFrame(found)).filter("b"))

    def given(self, spool: Spool) -> None:
        """Histories of users from files of their own."""
        plan, given = self.plan, self.plan.schema.history.given
        assert given is not None
        user = given.user or plan.schema.columns.user
        for file, split in plan.given:
            seen: set[str] = set()
            with plan.mistakes.noted():
                for first, frame in file.pieces([user, *plan.list_columns()], plan.progress):
                    place = Place(file, first, plan.mistakes)
                    ids = self._ids(frame, user, place)
                    keys = ids.fill_null("").to_list()
                    again = ~ids.is_first_distinct().to_numpy() | np.array(
                        [key in seen for key in keys], bool
                    )
                    seen.update(keys)
                    place.check(again, user, "user '{}' is there twice", ids)
                    found = {"u": ids, "s": pl.Series(np.full(len(frame), split, np.int8))}
                    spool.write(pl.DataFrame(found | self._lists(frame, place)).drop_nulls("u"))

    def _ids(self, frame: pl.DataFrame, column: str, place: Place) -> pl.Series:
        """Ids; a missing one is a mistake unless such rows are to be left out."""
        refused = not self.plan.schema.source.drop_rows_without_ids
        return required(texts(frame, column, place), column, place, refused=refused)

    def _rows(self, frame: pl.DataFrame, place: Place, split: int) -> pl.DataFrame:
        plan, schema = self.plan, self.plan.schema
        rows = len(frame)
        found: dict[str, pl.Series] = {"u": self._ids(frame, schema.columns.user, place)}
        if schema.columns.time is not None:
            found["t"] = plan.clock.read(frame, schema.columns.time, place)
        else:
            found["t"] = pl.Series(np.arange(self._row, self._row + rows, dtype=np.int64))
        self._row += rows
        found["s"] = self._split(frame, place, split)
        for encoder in plan.encoders.values():
            if plan.home[encoder.name] is None:
                raw = encoder.raw(frame, place)
                found[f"f:{encoder.name}"] = raw.cast(encoder.raw_type)
        if plan.windows:
            if not plan.given:
                found |= self._lists(frame, place)
            found["b"] = pl.Series(np.zeros(rows, bool))
        elif schema.history.log is not None:
            found["b"] = pl.Series(np.zeros(rows, bool))
        else:
            found |= self._events(frame, place)
        if schema.impressions is not None:
            return self._kept(self._shown(frame, pl.DataFrame(found), place))
        found["i"] = self._ids(frame, schema.columns.item, place)
        found["y"] = self._labels(frame, place)
        found["r"] = pl.Series(np.ones(rows, bool))
        if plan.unlabelled:  # what is to be scored has not happened yet
            found["b"] = found["b"] & found["y"].is_not_null()
        if schema.negatives is not None:
            found["r"] = found["y"] == 1
        return self._kept(pl.DataFrame(found))

    def _labels(self, frame: pl.DataFrame, place: Place) -> pl.Series:
        label = self.plan.label
        if label is None:
            return pl.Series(np.ones(len(frame), np.uint8))
        wanted = label.columns if isinstance(label, Rule) else (label,)
        if self.plan.unlabelled and any(column not in frame.columns for column in wanted):
            return pl.Series([None] * len(frame), dtype=pl.UInt8)
        return labels(frame, label, place, optional=self.plan.unlabelled)

    def _kept(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows that are not to be left out."""
        if self.plan.unlabelled and "r" in frame.columns:
            number = np.arange(self._spooled, self._spooled + len(frame), dtype=np.int64)
            frame = frame.with_columns(pl.Series("n", number))
            self._spooled += len(frame)
        before = len(frame)
        options = self.plan.schema.source
        if options.drop_rows_without_ids:
            frame = frame.filter(pl.col("u").is_not_null() & pl.col("i").is_not_null())
            self._drop("without user or item", before - len(frame))
        if options.drop_times_outside is not None:
            low, high = (self.plan.clock.moment(text, "source.drop_times_outside")
                         for text in options.drop_times_outside)  # fmt: skip
            before = len(frame)
            frame = frame.filter(pl.col("t").is_between(low, high))
            self._drop("outside source.drop_times_outside", before - len(frame))
        return frame

    def _drop(self, why: str, count: int) -> None:
        if count:
            self.dropped[why] = self.dropped.get(why, 0) + count

    def _split(self, frame: pl.DataFrame, place: Place, split: int) -> pl.Series:
        options = self.plan.schema.splits
        rows = len(frame)
        if self.plan.unlabelled or options.by in ("time", "files"):
            return pl.Series(np.full(rows, split, np.int8))
        if options.by == "column":
            assert options.column is not None
            names = options.values or {name: name for name in SPLITS}
            codes = {value: SPLITS.index(name) for name, value in names.items()}
            raw = texts(frame, options.column, place)
            found = raw.replace_strict(codes, default=None, return_dtype=pl.Int8)
            values = ", ".join(codes)
            place.check(found.is_null(), options.column, f"'{{}}' is no split; there are {values}", raw)
            return found.fill_null(0)
        group = pl.Series([str(self._row - rows + row) for row in range(rows)])
        if options.column is not None:
            group = required(texts(frame, options.column, place), options.column, place)
        distinct = group.unique()
        share = stable_hash(distinct, options.seed).astype(np.float64) / 2.0**64
        code = np.searchsorted(np.cumsum(options.fractions)[:2], share, side="right").astype(np.int8)
        table = pl.DataFrame({"g": distinct, "s": code})
        return pl.DataFrame({"g": group}).join(table, on="g", how="left", maintain_order="left")["s"]

    def _events(self, frame: pl.DataFrame, place: Place) -> dict[str, pl.Series]:
        """Which rows are behaviours, of which sequences, and what else is known of them."""
        plan = self.plan
        rules = [*([plan.events] if plan.events else []), *plan.sequences.values()]
        if any(column not in frame.columns for rule in rules for column in rule.columns):
            rows = len(frame)  # rows to be scored need not say what became of them
            found = {"b": pl.Series(np.zeros(rows, bool))}
            found |= {
                f"c:{name}": pl.Series([None] * rows, dtype=e.raw_type) for name, e in plan.columns.items()
            }
            return found | (
                {f"c:{SEQUENCE}": pl.Series([None] * rows, dtype=pl.String)} if plan.sequences else {}
            )
        for rule in rules:
            for column in rule.numeric:
                numbers(frame, column, place, f", but the rule '{rule.text}' compares it with one")
        behaviour = (
            pl.lit(plan.schema.history.events != "none") if plan.events is None else plan.events.expression()
        )
        found = {"b": frame.select(behaviour.alias("b")).to_series().new_from_index(0, len(frame))
                 if plan.events is None else frame.select(behaviour.alias("b")).to_series()}  # fmt: skip
        if plan.sequences:
            names = [
                pl.when(rule.expression()).then(pl.lit(f"+{name}")).otherwise(pl.lit(""))
                for name, rule in plan.sequences.items()
            ]
            joined = frame.select(pl.concat_str(names).str.strip_prefix("+").alias("q")).to_series()
            found["b"] = found["b"] & (joined != "")
            found[f"c:{SEQUENCE}"] = joined
        for name, encoder in plan.columns.items():
            there = encoder.column in frame.columns
            raw = (
                encoder.raw(frame, place) if there else pl.Series([None] * len(frame), dtype=encoder.raw_type)
            )
            found[f"c:{name}"] = raw.cast(encoder.raw_type)
        return found

    def _lists(self, frame: pl.DataFrame, place: Place) -> dict[str, pl.Series]:
        """Given histories, their times and columns, oldest first."""
        given = self.plan.schema.history.given
        assert given is not None
        known_by = list(self.plan.schema.history.known_by.values())
        items = lists(frame, known_by[0] if known_by else given.items, given.separator, place)
        empty = pl.Series([[]], dtype=pl.List(pl.String))
        items = items.fill_null(empty.first()) if items.null_count() else items
        found = {"h": items}
        length = items.list.len()

        def aligned(column: str, values: pl.Series) -> pl.Series:
            wrong = values.list.len().fill_null(0) != length
            place.check(wrong, column, f"{{}} entries for {{}} behaviours in '{given.items}'",
                        values.list.len().fill_null(0), length)  # fmt: skip
            return values

        if known_by:
            parts = [
                aligned(c, lists(frame, c, given.separator, place).fill_null(empty.first())) for c in known_by
            ]
            flats = [part.explode(empty_as_null=False, keep_nulls=False) for part in parts]
            even = len({len(flat) for flat in flats}) == 1  # else noted above
            found["h"] = regroup(_unnamed(flats), items) if even else items
        if given.times is not None:
            raw = frame[given.times]
            if isinstance(raw.dtype, pl.List):
                flat = raw.explode(empty_as_null=False, keep_nulls=False)
            else:
                raw = lists(frame, given.times, given.separator, place)
                flat = raw.explode(empty_as_null=False, keep_nulls=False)
            inner = _entries_of(raw, place)
            moments = (
                self.plan.clock.read_series(flat, given.times, inner) if len(flat) else flat.cast(pl.Int64)
            )
            found["ht"] = aligned(given.times, regroup(moments.cast(pl.Int64), raw))
        for name, encoder in self.plan.columns.items():
            raw = frame[encoder.column]
            if not isinstance(raw.dtype, pl.List):
                raw = lists(frame, encoder.column, given.separator, place)
            entries = pl.DataFrame({encoder.column: raw.explode(empty_as_null=False, keep_nulls=False)})
            flat = encoder.raw(entries, _entries_of(raw, place)).cast(encoder.raw_type)
            found[f"c:{name}"] = aligned(encoder.column, regroup(flat, raw))
        if given.newest_first:
            found = {name: values.list.reverse() for name, values in found.items()}
        return found

    def _shown(self, frame: pl.DataFrame, parsed: pl.DataFrame, place: Place) -> pl.DataFrame:
        """One row for each item that was shown."""
        options = self.plan.schema.impressions
        assert options is not None
        shown = lists(frame, options.items, options.separator, place)
        place.check((shown.list.len().fill_null(0) == 0), options.items, "no item is shown")
        count = shown.list.len().fill_null(0).to_numpy()
        owner = np.repeat(np.arange(len(frame)), count)
        item = shown.explode(empty_as_null=False, keep_nulls=False)
        if options.clicked is None:
            parts = item.str.extract_groups(f"^(.+){_escaped(options.label_separator)}([01])$").struct
            label = parts[1].cast(pl.UInt8, strict=False)
            if not self.plan.unlabelled:
                bad = np.zeros(len(frame), bool)
                bad[owner[label.is_null().to_numpy()]] = True
                place.check(
                    bad, options.items, f"an item without its label, as in 'N1{options.label_separator}1'"
                )
            item = pl.select(pl.coalesce(parts[0], item)).to_series()
        elif options.clicked not in frame.columns:
            label = pl.Series([None] * len(item), dtype=pl.UInt8)
        else:
            clicked = lists(frame, options.clicked, options.separator, place)
            pairs = pl.DataFrame({
                "o": np.repeat(np.arange(len(frame)), clicked.list.len().fill_null(0).to_numpy()),
                "i": clicked.explode(empty_as_null=False, keep_nulls=False),
            }).unique().with_columns(y=pl.lit(1, pl.UInt8))  # fmt: skip
            all_shown = pl.DataFrame({"o": owner, "i": item})
            joined = all_shown.join(pairs, on=["o", "i"], how="left", maintain_order="left")
            label = joined["y"].fill_null(0)
            lost = pairs.join(all_shown, on=["o", "i"], how="anti")["o"].to_numpy()
            bad = np.zeros(len(frame), bool)
            bad[lost] = True
            place.check(bad, options.clicked, "an item was clicked that was not shown")
        rows = parsed[owner]
        kept = [
            pl.Series("i", item, dtype=pl.String),
            pl.Series("y", label, dtype=pl.UInt8),
            pl.Series("r", np.ones(len(item), bool)),
        ]
        return rows.with_columns(kept)


def _entries_of(raw: pl.Series, place: Place) -> EntryPlace:
    """Where the entries of a column of lists stand."""
    length = raw.list.len().fill_null(0).to_numpy()
    owner = np.repeat(np.arange(len(raw)), length)
    return EntryPlace(place.file, place.first, place.mistakes, owner, len(raw))


def _unnamed(parts: list[pl.Series]) -> pl.Series:
    """Keys of items that are known by features only."""
    texts_of = [pl.lit(UNNAMED) + part.cast(pl.String).fill_null("") for part in parts]
    return pl.select(pl.concat_str(texts_of)).to_series()


def _escaped(text: str) -> str:
    return "".join(f"\\x{{{ord(letter):x}}}" for letter in text)
