"""``lain prepare log``: from files and a schema to a prepared data set, in bounded memory.

1. Every file is read once, checked, and spooled as typed columns (:mod:`scan`).
2. Splits, ids, vocabularies and scales are learned from the spool (:mod:`fit`).
3. Rows and behaviours are dealt to parts by user; in each part histories are ordered and rows find theirs.
4. Rows are dealt once more, by time, and written in the order of time.

What stays in memory: a part, and some bytes for every different user and item.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
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
from lain.formats.log.features import GAP_SIZE, Categorical, gap_codes
from lain.formats.log.fit import Fitted, Frozen, SplitRule, Spools, fit, split_rule
from lain.formats.log.history import behaviour_order, earlier, merge_lists
from lain.formats.log.plan import Plan, open_plan
from lain.formats.log.scan import SEQUENCE, Scan
from lain.formats.log.schema import ITEM, SPLITS, USER, LogSchema
from lain.formats.log.splits import bounds, even_edges
from lain.formats.log.spool import Spool
from lain.formats.log.values import SECOND
from lain.formats.log.vocabulary import Vocabulary, mix
from lain.formats.tables import Progress

PART_ROWS = 1_000_000
"""Rows and behaviours that a part holds on average."""

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
        progress: Told how far reading is.
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


@dataclass(eq=False)
class _Sequences:
    """The histories on disk, user after user, until their lengths are all known."""

    folder: Path
    columns: dict[str, np.dtype[Any]]

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.lengths: list[Int[np.ndarray, " users"]] = []
        self._streams = {name: self._path(name).open("wb") for name in self.columns}

    def _path(self, name: str) -> Path:
        return self.folder / str(list(self.columns).index(name))

    def append(self, lengths: Int[np.ndarray, " users"], values: dict[str, np.ndarray]) -> None:
        self.lengths.append(lengths)
        for name, dtype in self.columns.items():
            self._streams[name].write(np.ascontiguousarray(values[name], dtype=dtype).data)

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        with self._path(name).open("rb") as stream:
            while block := stream.read(1 << 22):
                yield np.frombuffer(block, dtype=self.columns[name])


class Preparation:
    """The steps of one preparation.

    Args:
        plan: The opened log.
        scratch: An empty folder for what lies on disk in between.
        part_rows: Rows and behaviours that are in memory at once.
        frozen: What another preparation learned; None: learn.
    """

    def __init__(self, plan: Plan, scratch: Path, part_rows: int, frozen: Frozen | None = None) -> None:
        self.plan, self.scratch, self.part_rows, self.frozen = plan, scratch, part_rows, frozen
        self.fitted: Fitted
        self.rule: SplitRule
        self.cut = 0
        """Given behaviours that were not before their row."""

    def write(self, out: Path, name: str, notes: dict[str, Any]) -> None:
        """All steps."""
        plan = self.plan
        spools = self._scan()
        self.rule = split_rule(plan, spools)
        self.fitted = fit(plan, spools, self.rule, self.frozen)
        if plan.sequences and self.frozen is None:
            self._fit_sequences(spools)
        plan.mistakes.raise_all()
        if self.frozen is None and not self.fitted.behaviours:
            self._no_history()
        parts = self._deal(spools)
        self._rows_of_splits = np.zeros(3, dtype=np.int64)
        sequences, by_time = self._histories(parts, spools)
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
        if self.cut:
            plan.notices.append(
                f"{self.cut} given behaviours were not before the row that lists them; they were cut off"
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
        for why, count in scan.dropped.items():
            self.plan.notices.append(f"{count} rows {why} were left out")
        return spools

    def _no_history(self) -> None:
        history = self.plan.schema.history
        if history.events not in ("all", "none"):
            raise DataError(f"{self.plan.rows[0][0].path}: no row fulfils history.events "
                            f"'{history.events}', so no user "
                            "would have a history")  # fmt: skip
        self.plan.notices.append("no row has a history; models of histories have nothing to read here")

    def _fit_sequences(self, spools: Spools) -> None:
        encoder = Categorical(SEQUENCE, "behaviour", SEQUENCE, 1)
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
                    frame = self._encoded(piece)
                    users = frame["u"].to_numpy().astype(np.int64)
                    dealt.deal(frame, users * count // len(self.fitted.users))
            spool.remove(0)
        return parts

    def _encoded(self, piece: pl.DataFrame) -> pl.DataFrame:
        plan, fitted = self.plan, self.fitted
        found: dict[str, Any] = {"u": fitted.users.encode(piece["u"])}
        if "i" in piece.columns:
            found["i"] = fitted.items.encode(piece["i"])
        for name in ("t", "b", "r"):
            if name in piece.columns:
                found[name] = piece[name]
        if "y" in piece.columns:
            found["y"] = piece["y"].fill_null(0)
            found["s"] = self.rule.codes(piece)
        elif "s" in piece.columns:
            found["s"] = piece["s"]
        for encoder in plan.in_log("context"):
            if f"f:{encoder.name}" in piece.columns:
                values = encoder.encode(piece[f"f:{encoder.name}"])
                found[f"f:{encoder.name}"] = values if values.ndim == 1 else _as_arrays(values)
        lists = "h" in piece.columns
        for name, column in plan.columns.items():
            if f"c:{name}" in piece.columns:
                raw = piece[f"c:{name}"]
                found[f"c:{name}"] = _encoded_lists(raw, column.encode) if lists else column.encode(raw)
        if lists:
            found["h"] = _encoded_lists(piece["h"], fitted.items.encode)
            if "ht" in piece.columns:
                found["ht"] = piece["ht"]
        return pl.DataFrame(found)

    def _histories(self, parts: dict[str, Spool], spools: Spools) -> tuple[_Sequences, Spool]:
        """Part by part: order the behaviours of every user, and find what each row has of them."""
        columns: dict[str, np.dtype[Any]] = {
            "item": np.dtype(np.int32),
            **{name: np.dtype(np.int32) for name in self.plan.columns},
        }
        if self._has_gap:
            columns |= {"gap": np.dtype(np.int32)}
        if self._has_time:
            columns |= {"time": np.dtype(np.int64)}
        sequences = _Sequences(self.scratch / "sequences", columns)
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
                rows = parts["rows"].whole(part)
                if self.plan.windows:
                    rows = self._windows(sequences, rows, parts["given"].whole(part), first, last)
                else:
                    rows = self._ordered(sequences, rows, parts["past"].whole(part), first, last)
                if rows is not None:
                    self._rows_of_splits += np.bincount(rows["s"].to_numpy(), minlength=3)
                    by_time.deal(rows, np.searchsorted(self._edges, rows["t"].to_numpy(), side="right"))
                for spool in parts.values():
                    spool.remove(part)
        sequences.close()
        return sequences, by_time

    @property
    def _has_time(self) -> bool:
        given = self.plan.schema.history.given
        return self.plan.timed and (given is None or given.times is not None)

    @property
    def _has_gap(self) -> bool:
        return self._has_time and self.plan.schema.history.gap

    def _ordered(
        self,
        sequences: _Sequences,
        rows: pl.DataFrame | None,
        past: pl.DataFrame | None,
        first: int,
        last: int,
    ) -> pl.DataFrame | None:
        """Histories made of events."""
        names = [f"c:{name}" for name in self.plan.columns]
        wanted = ["u", "i", "t", *names]
        own = rows.filter("b") if rows is not None else None
        there = [frame.select(wanted) for frame in (own, past) if frame is not None and len(frame)]
        users = last - first
        if not there:
            sequences.append(np.zeros(users, np.int64), {n: np.zeros(0) for n in sequences.columns})
            return self._with_history(rows, None)
        events = pl.concat(there)
        user = events["u"].to_numpy().astype(np.int64) - first
        item, time = events["i"].to_numpy(), events["t"].to_numpy()
        others = [events[name].to_numpy() for name in names]
        order = behaviour_order(user, time, self.fitted.item_hash[item], others)
        user, time = user[order], time[order]
        values = {"item": item[order], **{n[2:]: v[order] for n, v in zip(names, others, strict=True)}}
        values |= self._times(time, np.append(True, user[1:] != user[:-1])[: len(user)])
        sequences.append(np.bincount(user, minlength=users), values)
        if rows is None:
            return None
        kept = rows.filter("r")
        ends = earlier(user, time, kept["u"].to_numpy().astype(np.int64) - first, kept["t"].to_numpy(), users)
        return self._with_history(kept, ends)

    def _times(self, time: Int[np.ndarray, " n"], first: Shaped[np.ndarray, " n"]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        if self._has_gap:
            found["gap"] = gap_codes(time, first)
        if self._has_time:
            found["time"] = time // SECOND
        return found

    def _with_history(
        self,
        rows: pl.DataFrame | None,
        end: Int[np.ndarray, " rows"] | None,
        start: Int[np.ndarray, " rows"] | None = None,
    ) -> pl.DataFrame | None:
        """The rows to learn from with the ends of their histories; negatives are drawn here."""
        if rows is None:
            return None
        if end is None:
            rows = rows.filter("r")
            end = np.zeros(len(rows), np.int64)
        kept = [name for name in rows.columns if name in ("u", "i", "t", "y", "s") or name.startswith("f:")]
        frame = rows.select(kept).with_columns(pl.Series("e", end, dtype=pl.Int64))
        frame = frame.with_columns(pl.Series("a", np.zeros(len(frame), np.int64) if start is None else start))
        if self.plan.schema.negatives is not None:
            frame = self._with_negatives(frame)
        key = mix(self.fitted.user_hash[frame["u"].to_numpy()], self.fitted.item_hash[frame["i"].to_numpy()])
        return frame.with_columns(pl.Series("k", key), pl.Series("k2", _mixed(frame)))

    def _with_negatives(self, clicks: pl.DataFrame) -> pl.DataFrame:
        options = self.plan.schema.negatives
        assert options is not None
        user, item = (
            self.fitted.user_hash[clicks["u"].to_numpy()],
            self.fitted.item_hash[clicks["i"].to_numpy()],
        )
        items = self.fitted.items
        drawn = [clicks]
        for number in range(options.per_click):
            seed = np.full(len(clicks), options.seed * 1_000_003 + number)
            chosen = mix(user, item, clicks["t"].to_numpy(), seed) % np.uint64(max(len(items) - 1, 1))
            other = chosen.astype(np.int32) + items.first
            other += other >= clicks["i"].to_numpy()  # never the clicked item itself
            drawn.append(clicks.with_columns(pl.Series("i", np.minimum(other, items.size - 1)),
                                             pl.lit(0, pl.UInt8).alias("y")))  # fmt: skip
        return pl.concat(drawn)

    def _windows(
        self,
        sequences: _Sequences,
        rows: pl.DataFrame | None,
        given: pl.DataFrame | None,
        first: int,
        last: int,
    ) -> pl.DataFrame | None:
        """Histories given as lists, in the rows or one per user and split."""
        names = [f"c:{name}" for name in self.plan.columns]
        source = given if self.plan.given else rows
        users = last - first
        starts = np.zeros(0 if source is None else len(source), np.int64)
        values: dict[str, list[np.ndarray]] = {name: [] for name in sequences.columns}
        lengths = np.zeros(users, np.int64)
        if source is not None:
            user = source["u"].to_numpy().astype(np.int64) - first
            when = source["t"].to_numpy() if "t" in source.columns else source["s"].to_numpy()
            order = np.lexsort((np.arange(len(user)), when, user))
            edges = np.flatnonzero(np.append(True, user[order][1:] != user[order][:-1])[: len(order)])
            flat, offset = _flat(source, ["h", *names, *(["ht"] if "ht" in source.columns else [])])
            key = mix(*(flat[name] for name in ("h", *names)))
            for begin, stop in zip(edges, [*edges[1:], len(order)], strict=True):
                chosen = order[begin:stop]
                merged = merge_lists([key[offset[r] : offset[r + 1]] for r in chosen])
                starts[chosen] = merged.start
                place = offset[chosen[merged.owner]] + merged.place if len(merged.owner) else merged.place
                lengths[user[chosen[0]]] = len(place)
                values["item"].append(flat["h"][place])
                for name in names:
                    values[name[2:]].append(flat[name][place])
                if self._has_time:
                    time = flat["ht"][place]
                    for name, column in self._times(time, np.arange(len(time)) == 0).items():
                        values[name].append(column)
        sequences.append(lengths, {n: np.concatenate(v) if v else np.zeros(0) for n, v in values.items()})
        if rows is None:
            return None
        if not self.plan.given:
            end = starts + rows["h"].list.len().to_numpy()
            if self._has_time:
                end = self._before(rows, starts, rows["h"].list.len().to_numpy().astype(np.int64),
                                   np.arange(len(rows)), rows)  # fmt: skip
            return self._with_history(rows, end, starts)
        return self._given_rows(rows, given, starts, lengths)

    def _given_rows(
        self,
        rows: pl.DataFrame,
        given: pl.DataFrame | None,
        starts: Int[np.ndarray, " lists"],
        lengths: Int[np.ndarray, " users"],
    ) -> pl.DataFrame | None:
        """Rows with the history of their user in their split."""
        if given is None:
            return self._with_history(rows, np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64))
        known = {(int(u), int(s)): place for place, (u, s) in enumerate(given.select("u", "s").iter_rows())}
        owner = np.array(
            [known.get((u, s), known.get((u, -1), -1)) for u, s in rows.select("u", "s").iter_rows()],
            np.int64,
        )
        length = given["h"].list.len().to_numpy().astype(np.int64)
        if self.rule.train_until is not None or self.rule.random_valid:  # valid is a part of train
            made = (owner < 0) & (rows["s"].to_numpy() == 1)
            owner[made] = [known.get((u, 0), -1) for u in rows["u"].to_numpy()[made]]
        there = owner >= 0
        start = np.where(there, starts[owner], 0)
        size = np.where(there, length[owner], 0)
        end = self._before(rows, start, size, owner, given) if self._has_time else start + size
        return self._with_history(rows, end, start)

    def _before(
        self,
        rows: pl.DataFrame,
        start: Int[np.ndarray, " rows"],
        size: Int[np.ndarray, " rows"],
        owner: Int[np.ndarray, " rows"],
        lists: pl.DataFrame,
    ) -> Int[np.ndarray, " rows"]:
        """End of each row's window, without behaviours at or after the row."""
        flat, offset = _flat(lists, ["ht"])
        moments = rows["t"].to_numpy()
        count = size.copy()
        last = np.where(size > 0, flat["ht"][np.minimum(offset[owner] + size - 1, len(flat["ht"]) - 1)]
                        if len(flat["ht"]) else 0, 0)  # fmt: skip
        for row in np.flatnonzero((size > 0) & (last >= moments)):
            begin = offset[owner[row]]
            count[row] = np.searchsorted(flat["ht"][begin : begin + size[row]], moments[row])
        self.cut += int((size - count).sum())
        return np.asarray(start + count)

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
        found += [Feature("gap", "behaviour", "categorical", GAP_SIZE)] if self._has_gap else []
        found += [Feature("time", "behaviour", "time", 0)] if self._has_time else []
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

    def _write_sequences(self, store: StoreWriter, sequences: _Sequences) -> None:
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
            code: store.split(name, int(counts[code])) for code, name in enumerate(SPLITS) if counts[code]
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


def _encoded_lists(lists: pl.Series, encode: Any) -> pl.Series:
    """Lists with every entry encoded."""
    flat = encode(lists.explode(empty_as_null=False, keep_nulls=False))
    lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return _as_lists(flat, offsets)


def _mixed(frame: pl.DataFrame) -> Shaped[np.ndarray, " rows"]:
    """64 bits of each row's features, which put rows that are otherwise alike into an order."""
    columns: list[np.ndarray] = [np.zeros(len(frame), np.int64)]
    for name in frame.columns:
        if name.startswith("f:"):
            values = frame[name].to_numpy()
            bits = np.ascontiguousarray(values).view(np.int32) if values.dtype.kind == "f" else values
            columns += list(bits.reshape(len(frame), -1).T)
    return mix(*columns)


def _as_arrays(values: Shaped[np.ndarray, "rows width"]) -> pl.Series:
    """Rows of equal length."""
    inner = pl.Float32 if values.dtype == np.float32 else pl.Int32
    return pl.Series(values, dtype=pl.Array(inner, values.shape[1]))


def _as_lists(flat: np.ndarray, offsets: Int[np.ndarray, " edges"]) -> pl.Series:
    import pyarrow as pa

    array = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(flat))
    found = pl.from_arrow(array)
    assert isinstance(found, pl.Series)
    return found


def _flat(
    frame: pl.DataFrame, names: list[str]
) -> tuple[dict[str, Shaped[np.ndarray, " entries"]], Int[np.ndarray, " edges"]]:
    """Entries of list columns one behind the other, and where each row's begin."""
    lengths = frame[names[0]].list.len().fill_null(0).to_numpy().astype(np.int64)
    flat = {name: frame[name].explode(empty_as_null=False, keep_nulls=False).to_numpy() for name in names}
    return flat, np.concatenate([[0], np.cumsum(lengths)])
