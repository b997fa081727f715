"""Histories of the users of one part, and what each of their rows has of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int, Shaped

from lain.formats.log.entries import Fitted
from lain.formats.log.fit import SplitRule
from lain.formats.log.history import behaviour_order, earlier, gap_codes, merge_lists
from lain.formats.log.plan import Plan
from lain.formats.log.values import SECOND
from lain.formats.log.vocabulary import mix


@dataclass(eq=False)
class Sequences:
    """The histories on disk, user after user, until their lengths are all known.

    Args:
        folder: A new folder for them.
        columns: Type of each column; ``item`` is one.
    """

    folder: Path
    columns: dict[str, np.dtype[Any]]

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.lengths: list[Int[np.ndarray, " users"]] = []
        self._streams = {name: self._path(name).open("wb") for name in self.columns}

    def _path(self, name: str) -> Path:
        return self.folder / str(list(self.columns).index(name))

    def append(self, lengths: Int[np.ndarray, " users"], values: dict[str, np.ndarray]) -> None:
        """Add the histories of the next users: their lengths, and the values of every column."""
        self.lengths.append(lengths)
        for name, dtype in self.columns.items():
            self._streams[name].write(np.ascontiguousarray(values[name], dtype=dtype).data)

    def close(self) -> None:
        """Nothing more will come."""
        for stream in self._streams.values():
            stream.close()

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """The values of a column, in order."""
        with self._path(name).open("rb") as stream:
            while block := stream.read(1 << 22):
                yield np.frombuffer(block, dtype=self.columns[name])


class PartHistories:
    """Orders behaviours and finds the end of every row's history, part by part.

    Args:
        plan: The opened log.
        fitted: What was learned.
        rule: Splits of the rows.
    """

    def __init__(self, plan: Plan, fitted: Fitted, rule: SplitRule) -> None:
        self.plan, self.fitted, self.rule = plan, fitted, rule
        self.cut = 0
        """Given behaviours that were not before their row."""

    def add(
        self,
        sequences: Sequences,
        rows: pl.DataFrame | None,
        past: pl.DataFrame | None,
        given: pl.DataFrame | None,
        users: tuple[int, int],
    ) -> pl.DataFrame | None:
        """Append the histories of some users, and return their rows with the ends of their histories.

        Args:
            sequences: Where the histories go.
            rows: The log's rows of these users.
            past: More behaviours of these users.
            given: Their given histories.
            users: Index of the first of them, and of the first behind.
        """
        if self.plan.windows:
            return self._windows(sequences, rows, given, *users)
        return self._ordered(sequences, rows, past, *users)

    @property
    def has_time(self) -> bool:
        """Whether behaviours have times."""
        given = self.plan.schema.history.given
        return self.plan.timed and (given is None or given.times is not None)

    @property
    def has_gap(self) -> bool:
        """Whether they know the time since the one before."""
        return self.has_time and self.plan.schema.history.gap

    def _ordered(
        self,
        sequences: Sequences,
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
        if self.has_gap:
            found["gap"] = gap_codes(time, first)
        if self.has_time:
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
        kept = [
            name for name in rows.columns if name in ("u", "i", "t", "y", "s", "n") or name.startswith("f:")
        ]
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
        sequences: Sequences,
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
                if self.has_time:
                    time = flat["ht"][place]
                    for name, column in self._times(time, np.arange(len(time)) == 0).items():
                        values[name].append(column)
        sequences.append(lengths, {n: np.concatenate(v) if v else np.zeros(0) for n, v in values.items()})
        if rows is None:
            return None
        if not self.plan.given:
            end = starts + rows["h"].list.len().to_numpy()
            if self.has_time:
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
        end = self._before(rows, start, size, owner, given) if self.has_time else start + size
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


def _mixed(frame: pl.DataFrame) -> Shaped[np.ndarray, " rows"]:
    """64 bits of each row's features, which put rows that are otherwise alike into an order."""
    columns: list[np.ndarray] = [np.zeros(len(frame), np.int64)]
    for name in frame.columns:
        if name.startswith("f:"):
            values = frame[name].to_numpy()
            bits = np.ascontiguousarray(values).view(np.int32) if values.dtype.kind == "f" else values
            columns += list(bits.reshape(len(frame), -1).T)
    return mix(*columns)


def _flat(
    frame: pl.DataFrame, names: list[str]
) -> tuple[dict[str, Shaped[np.ndarray, " entries"]], Int[np.ndarray, " edges"]]:
    """Entries of list columns one behind the other, and where each row's begin."""
    lengths = frame[names[0]].list.len().fill_null(0).to_numpy().astype(np.int64)
    flat = {name: frame[name].explode(empty_as_null=False, keep_nulls=False).to_numpy() for name in names}
    return flat, np.concatenate([[0], np.cumsum(lengths)])
