"""The features of items and users: from the log, from their tables, from an earlier preparation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from jaxtyping import Int, Shaped, UInt64

from lain.formats.log.encoder import Encoder
from lain.formats.log.plan import NOWHERE, Plan, Table
from lain.formats.log.read import LogFile
from lain.formats.log.scan import UNNAMED
from lain.formats.log.values import Place, required, texts
from lain.formats.log.vocabulary import Vocabulary


@dataclass(eq=False)
class Fitted:
    """What was learned.

    Args:
        items: Item ids and indices (from 1).
        users: User ids and indices (from 0), in the order of a hash.
        item_hash: 64 bits per item index, for ties.
        user_hash: 64 bits per user index.
        learned_items: Item ids that have a vector of their own; None: the id is no feature.
        learned_users: The same of users.
        tables: Encoded item and user features, one row per index.
        rows: Rows of each split, and how many of them are clicks.
        behaviours: Number of behaviours that the log itself gives.
        labelled: Whether every row has a label.
    """

    items: Vocabulary
    users: Vocabulary
    item_hash: UInt64[np.ndarray, " items"]
    user_hash: UInt64[np.ndarray, " users"]
    learned_items: Vocabulary | None
    learned_users: Vocabulary | None
    tables: dict[str, Shaped[np.ndarray, "entries ..."]] = field(default_factory=dict)
    rows: Int[np.ndarray, " splits"] = field(default_factory=lambda: np.zeros(3, dtype=np.int64))
    clicks: Int[np.ndarray, " splits"] = field(default_factory=lambda: np.zeros(3, dtype=np.int64))
    behaviours: int = 0
    labelled: bool = True


@dataclass(eq=False)
class Frozen:
    """What another preparation learned, and the features of its items and users.

    Args:
        items: Item ids that have a vector of their own.
        users: The same of users.
        entries: Raw id and encoded features of items and users, by ``item`` and ``user``.
    """

    items: Vocabulary | None
    users: Vocabulary | None
    entries: dict[str, pl.DataFrame] = field(default_factory=dict)

    def fill(
        self,
        encoder: Encoder,
        ids: Vocabulary,
        table: Shaped[np.ndarray, "entries ..."],
        known: Int[np.ndarray, " known"],
    ) -> None:
        """Give entries, but for those that the new files say the feature of, what the old ones said."""
        old = self.entries.get(encoder.source)
        if old is None or encoder.name not in old.columns:
            return
        code, there = _known(ids, old["id"])
        new = np.zeros(ids.size, dtype=bool)
        new[known] = True
        take = there & ~new[code]
        table[code[take]] = old[encoder.name].to_numpy()[take]


def tables(
    plan: Plan,
    fitted: Fitted,
    counts: dict[str, pl.DataFrame],
    first_values: dict[str, pl.DataFrame],
    frozen: Frozen | None,
) -> None:
    """Encoded features of items and users, from the log and from their tables.

    Args:
        plan: The opened log.
        fitted: Where they go.
        counts: How often training rows have each item and user, by ``item`` and ``user``.
        first_values: What the earliest row of each item and user says of its features.
        frozen: What another preparation learned; None: learn.
    """
    for source, ids, key in (("item", fitted.items, "i"), ("user", fitted.users, "u")):
        encoders = plan.of(source)
        if not encoders:
            continue
        weight = np.zeros(ids.size, dtype=np.int64)
        weight[ids.encode(counts[source]["value"])] = counts[source]["count"].to_numpy()
        for encoder in encoders:
            if plan.home[encoder.name] == NOWHERE and frozen is not None:
                nothing = encoder.encode(pl.Series([None], dtype=encoder.raw_type))
                fitted.tables[encoder.name] = np.repeat(nothing, ids.size, axis=0)
                frozen.fill(encoder, ids, fitted.tables[encoder.name], np.zeros(0, np.int64))
        if source in first_values:
            _from_log(plan, source, first_values[source], key, ids, weight, fitted, frozen)
        _from_tables(plan, source, ids, weight, fitted, frozen)
        if source == "item" and plan.schema.history.known_by:
            _from_behaviours(plan, ids, fitted)


def _from_log(
    plan: Plan,
    source: str,
    values: pl.DataFrame,
    key: str,
    ids: Vocabulary,
    weight: Int[np.ndarray, " entries"],
    fitted: Fitted,
    frozen: Frozen | None,
) -> None:
    code = ids.encode(values[key])
    for encoder in plan.in_log(source):
        raw = values[f"f:{encoder.name}"]
        if frozen is None:
            there = weight[code] > 0
            encoder.add(raw.filter(there), weight[code][there])
            encoder.finish()
        found = encoder.encode(raw)
        table = _empty(encoder, ids.size, found)
        table[code] = found
        fitted.tables[encoder.name] = table
        if frozen is not None:
            frozen.fill(encoder, ids, table, code[raw.is_not_null().to_numpy()])


def _empty(
    encoder: Encoder, size: int, like: Shaped[np.ndarray, "rows ..."]
) -> Shaped[np.ndarray, "size ..."]:
    """A table of missing values."""
    nothing = encoder.encode(pl.Series([None], dtype=encoder.raw_type))
    table = np.zeros((size, *like.shape[1:]), dtype=like.dtype)
    table[:] = nothing[0]
    return table


def _from_tables(
    plan: Plan,
    source: str,
    ids: Vocabulary,
    weight: Int[np.ndarray, " entries"],
    fitted: Fitted,
    frozen: Frozen | None,
) -> None:
    """Two passes over every table: one to learn, one to encode. The first file that has an entry counts."""
    for number, table in enumerate(plan.tables):
        if table.kind != source:
            continue
        encoders = [encoder for encoder in plan.of(source) if plan.home[encoder.name] == number]
        columns = [table.key, *(encoder.column for encoder in encoders)]
        there = np.zeros(ids.size, dtype=bool)
        for file, first, frame, in_file in _table_pieces(plan, table, columns, ids.size):
            place = Place(file, first, plan.mistakes)
            keys = required(texts(frame, table.key, place), table.key, place)
            code, known = _known(ids, keys)
            again = known & (in_file[code] | ~keys.is_first_distinct().to_numpy())
            place.check(again, table.key, f"{source} '{{}}' is there twice", keys)
            chosen = known & (weight[code] > 0) & ~there[code]
            in_file[code[known]] = there[code[known]] = True
            for encoder in encoders:
                raw = encoder.raw(frame, place).cast(encoder.raw_type)
                if frozen is None:
                    encoder.add(raw.filter(chosen), weight[code[chosen]])
        plan.mistakes.raise_all()
        if frozen is None:
            for encoder in encoders:
                encoder.finish()
        filled = np.zeros(ids.size, dtype=bool)
        for file, first, frame, _ in _table_pieces(plan, table, columns, 0) if encoders else ():
            place = Place(file, first, plan.mistakes)
            code, known = _known(ids, texts(frame, table.key, place))
            known &= ~filled[code]
            filled[code[known]] = True
            for encoder in encoders:
                found = encoder.encode(encoder.raw(frame, place).cast(encoder.raw_type).filter(known))
                if encoder.name not in fitted.tables:
                    fitted.tables[encoder.name] = _empty(encoder, ids.size, found)
                fitted.tables[encoder.name][code[known]] = found
        if frozen is None:
            _report_lacking(plan, table, ids, there)
        if frozen is not None:
            present = np.flatnonzero(there)
            for encoder in encoders:
                frozen.fill(encoder, ids, fitted.tables[encoder.name], present)


def _table_pieces(
    plan: Plan, table: Table, columns: list[str], size: int
) -> Iterator[tuple[LogFile, int, pl.DataFrame, Shaped[np.ndarray, " entries"]]]:
    """The pieces of all files of a table, each with a mark per entry that lasts for the file."""
    for file in table.files:
        marks = np.zeros(size, dtype=bool)
        with plan.mistakes.noted():
            for first, frame in file.pieces(columns, plan.progress):
                yield file, first, frame, marks


def _report_lacking(plan: Plan, table: Table, ids: Vocabulary, there: Shaped[np.ndarray, " entries"]) -> None:
    real = ~ids.values.str.starts_with(UNNAMED).to_numpy()
    lacking = int((~there[ids.first :][real]).sum())
    if lacking:
        names = ", ".join(file.path.name for file in table.files)
        plan.notices.append(f"{names}: lacks {lacking} of the {int(real.sum())} {table.kind}s of the log")


def _from_behaviours(plan: Plan, ids: Vocabulary, fitted: Fitted) -> None:
    """Features of behaviours that have no id of their own."""
    unnamed = ids.values.str.starts_with(UNNAMED).to_numpy()
    code = np.flatnonzero(unnamed) + ids.first
    parts = ids.values.filter(unnamed).str.strip_prefix(UNNAMED).str.split(UNNAMED)
    for place, name in enumerate(plan.schema.history.known_by):
        encoder = plan.encoders.get(name)
        if encoder is None or not len(code):
            continue
        text = parts.list.get(place)
        raw = pl.select(pl.when(text != "").then(text)).to_series()
        found = encoder.encode(raw)
        if name not in fitted.tables:
            fitted.tables[name] = _empty(encoder, ids.size, found)
        fitted.tables[name][code] = found


def _known(ids: Vocabulary, keys: pl.Series) -> tuple[Int[np.ndarray, " rows"], Shaped[np.ndarray, " rows"]]:
    """Index of each key, and whether the log has it; of others the index means nothing."""
    table = pl.DataFrame({"k": ids.values, "c": np.arange(ids.first, ids.size, dtype=np.int64)})
    found = pl.DataFrame({"k": keys}).join(table, on="k", how="left", maintain_order="left")["c"]
    known = found.is_not_null().to_numpy()
    return found.fill_null(ids.first).to_numpy(), known
