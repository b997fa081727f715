"""``lain prepare log``: from files and a schema to a prepared data set, in bounded memory.

1. Every file is read once, checked, and spooled as typed columns (:mod:`scan`).
2. Splits, ids, vocabularies and scales are learned from the spool (:mod:`fit`).
3. Rows and behaviours are dealt to parts by user; in each part histories are ordered and
   rows find their ends.
4. Rows are dealt once more, by time, and written in the order of time.

What stays in memory: a part, and some bytes for every different user and item.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int, Shaped

from common.config import to_dict
from common.errors import DataError, describe_os_error
from common.files import scratch_folder
from lain.data.schema import Feature
from lain.data.writer import SplitWriter, StoreWriter
from lain.formats.log.deal import encoded
from lain.formats.log.entries import Fitted, Frozen
from lain.formats.log.features import Categorical
from lain.formats.log.fit import SplitRule, Spools, fit, split_rule
from lain.formats.log.history import GAP_SIZE
from lain.formats.log.parts import PartHistories, Sequences
from lain.formats.log.plan import Plan, open_plan
from lain.formats.log.scan import SEQUENCE, Scan
from lain.formats.log.schema import ITEM, SPLITS, USER, LogSchema
from lain.formats.log.splits import bounds, even_edges
from lain.formats.log.spool import Spool
from lain.formats.log.values import SECOND
from lain.formats.log.vocabulary import Vocabulary
from lain.formats.tables import Progress

PART_ROWS = 1_000_000
"""Rows and behaviours that a part holds on average."""

ROWS = "rows"
"""Name of the split of rows to be scored."""

ENCODING = "encoding.json"
"""Name of the vocabulary that holds the schema and what was learned besides the ids."""


def prepare_log(
    source: Path,
    out: Path,
    schema: LogSchema,
    progress: Progress,
    *,
    notes: dict[str, Any] | None = None,
    part_rows: int = PART_ROWS,
) -> list[str]:
    """Prepare a log.

    Args:
        source: A file, a folder or a pattern.
        out: The prepared data set to write.
        schema: What the columns mean.
        progress: Says how far reading is.
        notes: What else is kept beside the schema in the prepared set.
        part_rows: Rows and behaviours that are in memory at once.

    Returns:
        What the user should know about it, one line each.

    Raises:
        ConfigError: The schema has mistakes.
        DataError: The files have mistakes, or the prepared set cannot be written; then nothing is.
    """
    plan = open_plan(schema, source, progress)
    name = schema.name or source.resolve().name.split(".")[0]
    try:
        with scratch_folder(out) as scratch:
            Preparation(plan, scratch, part_rows).write(out, name, notes or {})
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({describe_os_error(error)})") from error
    return plan.notices


class Preparation:
    """The steps of one preparation.

    Args:
        plan: The opened log.
        scratch: An empty folder for what lies on disk in between.
        part_rows: Rows and behaviours that are in memory at once.
        frozen: What another preparation learned; None: learn.
        before: Ids that keep their vectors, of a preparation that this one grows from.
    """

    def __init__(
        self,
        plan: Plan,
        scratch: Path,
        part_rows: int,
        frozen: Frozen | None = None,
        before: Frozen | None = None,
    ) -> None:
        self.plan, self.scratch, self.part_rows = plan, scratch, part_rows
        self.frozen, self.before = frozen, before
        self.fitted: Fitted
        self.rule: SplitRule
        self.histories: PartHistories
        self.number: Int[np.ndarray, " rows"] = np.zeros(0, np.int64)
        """Of rows to be scored: their places in the log."""

    def write(self, out: Path, name: str, notes: dict[str, Any]) -> None:
        """All steps."""
        plan = self.plan
        spools = self._scan()
        self.rule = split_rule(plan, spools)
        self.fitted = fit(plan, spools, self.rule, self.frozen, self.before)
        if plan.sequences and self.frozen is None:
            self._fit_sequences(spools)
        plan.mistakes.raise_all()
        if self.frozen is None and not self.fitted.behaviours:
            self._no_history()
        self.histories = PartHistories(plan, self.fitted, self.rule)
        parts = self._deal(spools)
        self._rows_of_splits = np.zeros(3, dtype=np.int64)
        sequences, by_time = self._order(parts)
        features = self._features()
        writer = StoreWriter(
            out,
            name=name,
            features=features,
            num_items=self.fitted.items.size,
            num_users=len(self.fitted.users),
            notes={"format": "log", "label": plan.schema.columns.label, **notes},
        )
        with writer as store:
            self._write_tables(store)
            self._write_sequences(store, sequences)
            self._write_rows(store, by_time)
            self._write_vocabularies(store)
        negatives = plan.schema.negatives
        if negatives is not None:
            plan.notices.append(
                "the log has no impressions: rows without a click are items drawn at random, "
                f"{negatives.per_click} for each click; figures on them do not compare with real ones"
            )
        if self.histories.cut:
            plan.notices.append(
                f"{self.histories.cut} given behaviours were not before the row that lists them; they were "
                "cut off"
            )

    def _scan(self) -> Spools:
        scan = Scan(self.plan)
        spools = Spools(*(Spool(self.scratch / name) for name in ("rows", "past", "given")))
        with spools.rows, spools.past, spools.given:
            scan.rows(spools.rows)
            if self.plan.past:
                scan.past(spools.past)
            if self.plan.given:
                scan.given(spools.given)
        self.plan.mistakes.raise_all()
        if self.plan.unlabelled:
            spools.rows = _to_be_scored(spools.rows, self.scratch / "scored")
        for why, count in scan.dropped.items():
            self.plan.notices.append(f"{count} rows {why} were left out")
        return spools

    def _no_history(self) -> None:
        history = self.plan.schema.history
        if history.events not in ("all", "none"):
            raise DataError(
                f"{self.plan.rows[0][0].path}: no row fulfils history.events '{history.events}', so no user "
                "would have a history"
            )
        self.plan.notices.append("no row has a history; models of histories have nothing to read here")

    def _fit_sequences(self, spools: Spools) -> None:
        encoder = self.plan.columns.get(SEQUENCE) or Categorical(SEQUENCE, "behaviour", SEQUENCE, 1)
        for spool in (spools.rows, spools.past):
            for piece in spool.pieces():
                encoder.add(piece[f"c:{SEQUENCE}"].filter(piece["b"]))
        encoder.finish()
        self.plan.columns[SEQUENCE] = encoder

    def _deal(self, spools: Spools) -> dict[str, Spool]:
        """Ids become indices, features numbers; all of one user goes into one part."""
        total = int(sum(s.rows.sum() for s in (spools.rows, spools.past, spools.given)))
        if self.plan.windows:
            total += self.fitted.behaviours
        count = min(max(1, -(-total // self.part_rows)), len(self.fitted.users), 1024)
        parts = {name: Spool(self.scratch / f"{name}-by-user", count) for name in ("rows", "past", "given")}
        for name, spool in (("rows", spools.rows), ("past", spools.past), ("given", spools.given)):
            with parts[name] as dealt:
                for piece in spool.pieces():
                    frame = encoded(self.plan, self.fitted, self.rule, piece)
                    users = frame["u"].to_numpy().astype(np.int64)
                    dealt.deal(frame, users * count // len(self.fitted.users))
            spool.remove(0)
        return parts

    def _order(self, parts: dict[str, Spool]) -> tuple[Sequences, Spool]:
        """Part by part: order the behaviours of every user, and find what each row has of them."""
        columns: dict[str, np.dtype[Any]] = {
            "item": np.dtype(np.int32),
            **{name: np.dtype(np.int32) for name in self.plan.columns},
        }
        if self.histories.has_gap:
            columns |= {"gap": np.dtype(np.int32)}
        if self.histories.has_time:
            columns |= {"time": np.dtype(np.int64)}
        sequences = Sequences(self.scratch / "sequences", columns)
        number = parts["rows"].parts

        def times() -> Iterator[Int[np.ndarray, " rows"]]:
            for part in range(number):
                for piece in parts["rows"].pieces(part):
                    yield piece.filter("r")["t"].to_numpy()

        total, low, high = bounds(times)
        per_click = self.plan.schema.negatives.per_click if self.plan.schema.negatives else 0
        self._edges = even_edges(times, low, high, -(-total * (1 + per_click) // self.part_rows))
        users = len(self.fitted.users)
        with Spool(self.scratch / "by-time", len(self._edges) + 1) as by_time:
            for part in range(number):
                first, last = -(-part * users // number), -(-(part + 1) * users // number)
                own, past, given = (parts[name].whole(part) for name in ("rows", "past", "given"))
                rows = self.histories.add(sequences, own, past, given, (first, last))
                if rows is not None:
                    self._rows_of_splits += np.bincount(rows["s"].to_numpy(), minlength=3)
                    by_time.deal(rows, np.searchsorted(self._edges, rows["t"].to_numpy(), side="right"))
                for spool in parts.values():
                    spool.remove(part)
        sequences.close()
        return sequences, by_time

    def _features(self) -> list[Feature]:
        plan, fitted = self.plan, self.fitted
        found: list[Feature] = []
        if fitted.learned_items is not None:
            found.append(Feature(ITEM, "item", "categorical", fitted.learned_items.size))
        found += [encoder.feature for encoder in plan.of("item")]
        if fitted.learned_users is not None:
            found.append(Feature(USER, "user", "categorical", fitted.learned_users.size))
        found += [encoder.feature for encoder in (*plan.of("user"), *plan.of("context"))]
        if plan.timed:
            found.append(Feature("time", "context", "time", 0))
        found += [encoder.feature for encoder in plan.columns.values()]
        found += [Feature("gap", "behaviour", "categorical", GAP_SIZE)] if self.histories.has_gap else []
        found += [Feature("time", "behaviour", "time", 0)] if self.histories.has_time else []
        return found

    def _write_tables(self, store: StoreWriter) -> None:
        fitted = self.fitted
        if fitted.learned_items is not None:
            codes = fitted.learned_items.encode(fitted.items.values)
            store.items(ITEM, np.concatenate([[0], codes]))
        if fitted.learned_users is not None:
            store.users(USER, fitted.learned_users.encode(fitted.users.values))
        for encoder in self.plan.of("item"):
            table = self._table(encoder.name, fitted.items.size)
            table[0] = 0
            store.items(encoder.name, table)
        for encoder in self.plan.of("user"):
            store.users(encoder.name, self._table(encoder.name, len(fitted.users)))

    def _table(self, name: str, size: int) -> Shaped[np.ndarray, "entries ..."]:
        if name in self.fitted.tables:
            return self.fitted.tables[name]
        encoder = self.plan.encoders[name]
        nothing = encoder.encode(pl.Series([None], dtype=encoder.raw_type))
        return np.repeat(nothing, size, axis=0)

    def _write_sequences(self, store: StoreWriter, sequences: Sequences) -> None:
        items = store.history_values(np.concatenate(sequences.lengths))
        for piece in sequences.pieces("item"):
            items.append(piece)
        for name in sequences.columns:
            if name != "item":
                writer = store.behaviours(name)
                for piece in sequences.pieces(name):
                    writer.append(piece)

    def _write_rows(self, store: StoreWriter, by_time: Spool) -> None:
        counts = self._rows_of_splits
        splits: dict[int, SplitWriter] = {
            code: store.split(ROWS if self.plan.unlabelled else name, int(counts[code]))
            for code, name in enumerate(SPLITS)
            if counts[code]
        }
        names = [encoder.name for encoder in self.plan.in_log("context")]
        for part in range(by_time.parts):
            frame = by_time.whole(part)
            if frame is None:
                continue
            frame = frame.sort("t", "k", "y", "k2")
            code = frame["s"].to_numpy()
            for split, writer in splits.items():
                rows = frame.filter(code == split)
                if not len(rows):
                    continue
                context: dict[str, np.ndarray] = {name: rows[f"f:{name}"].to_numpy() for name in names}
                if self.plan.timed:
                    context["time"] = rows["t"].to_numpy() // SECOND
                start, end = rows["a"].to_numpy(), rows["e"].to_numpy()
                writer.append(
                    user=rows["u"].to_numpy(),
                    item=rows["i"].to_numpy(),
                    end=end,
                    length=end - start,
                    label=rows["y"].to_numpy(),
                    context=context,
                    start=start if self.plan.windows else None,
                )
            if self.plan.unlabelled:
                self.number = np.concatenate([self.number, frame["n"].to_numpy()])
            by_time.remove(part)

    def _write_vocabularies(self, store: StoreWriter) -> None:
        plan, fitted = self.plan, self.fitted
        vocabularies: dict[str, Vocabulary | None] = {
            "item_id": fitted.items,
            "user_id": fitted.users,
            ITEM: fitted.learned_items,
            USER: fitted.learned_users,
        }
        vocabularies |= {encoder.name: encoder.vocabulary for encoder in plan.encoders.values()}
        vocabularies |= {f"behaviour {name}": e.vocabulary for name, e in plan.columns.items()}
        for name, vocabulary in vocabularies.items():
            if vocabulary is not None:
                vocabulary.save(store.vocabulary(name))
        about = {
            "schema": to_dict(plan.schema),
            "time_unit": plan.clock.unit,
            "features": {encoder.name: encoder.state() for encoder in plan.encoders.values()},
            "columns": {name: encoder.state() for name, encoder in plan.columns.items()},
            "store": [asdict(feature) for feature in self._features()],
        }
        store.vocabulary(ENCODING).write_text(
            json.dumps(about, ensure_ascii=False, indent=1), encoding="utf-8"
        )


def _to_be_scored(rows: Spool, folder: Path) -> Spool:
    """The rows with those marked that are to be scored: the unlabelled ones, or all where there are none."""
    lacking = any(piece["y"].null_count() for piece in rows.pieces())
    marked = Spool(folder)
    with marked:
        for piece in rows.pieces():
            marked.write(piece.with_columns(r=pl.col("y").is_null()) if lacking else piece)
    rows.remove(0)
    return marked
