"""What is learned from the training rows: splits, ids, vocabularies, scales, tables of items and users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from jaxtyping import Int, Shaped, UInt64

from common.errors import ConfigError, DataError
from lain.formats.log.features import Encoder
from lain.formats.log.plan import Plan, Table
from lain.formats.log.read import LogFile
from lain.formats.log.scan import UNNAMED
from lain.formats.log.schema import SPLITS
from lain.formats.log.splits import bounds, order_statistic
from lain.formats.log.spool import Spool
from lain.formats.log.values import Place, required, texts
from lain.formats.log.vocabulary import Counter, Vocabulary, mix, stable_hash

TRAIN, VALID, TEST = range(3)


@dataclass(eq=False)
class Spools:
    """The spooled log.

    Args:
        rows: The log itself.
        past: More behaviours from other files.
        given: Histories of users from other files.
    """

    rows: Spool
    past: Spool
    given: Spool

    def times(self) -> Iterator[Int[np.ndarray, " rows"]]:
        """Times of the rows to learn from, in pieces."""
        for piece in self.rows.pieces():
            yield piece.filter("r")["t"].to_numpy()


@dataclass(eq=False)
class SplitRule:
    """Which split a row is in.

    Args:
        test_from: First moment of test among rows without a split.
        valid_from: First moment of valid among rows without a split.
        train_until: First moment of train rows that become valid, where there is no valid split.
        random_valid: Share of train that becomes valid by a hash, where there is no time either.
        seed: Of that hash.
    """

    test_from: int | None = None
    valid_from: int | None = None
    train_until: int | None = None
    random_valid: float = 0.0
    seed: int = 0

    def codes(self, frame: pl.DataFrame) -> Int[np.ndarray, " rows"]:
        """0, 1, 2 for train, valid, test."""
        code = frame["s"].to_numpy().copy()
        time = frame["t"].to_numpy()
        if self.test_from is not None and self.valid_from is not None:
            by_time = np.where(time >= self.test_from, TEST, np.where(time >= self.valid_from, VALID, TRAIN))
            code = np.where(code < 0, by_time, code)
        if self.train_until is not None:
            code = np.where((code == TRAIN) & (time >= self.train_until), VALID, code)
        if self.random_valid:
            share = mix(time, np.full(len(time), self.seed)).astype(np.float64) / 2.0**64
            code = np.where((code == TRAIN) & (share < self.random_valid), VALID, code)
        return np.asarray(np.maximum(code, TRAIN), dtype=np.int8)


def split_rule(plan: Plan, spools: Spools) -> SplitRule:
    """Find the moments at which the log is split.

    Raises:
        ConfigError: A moment leaves nothing to train on.
        DataError: Too many rows are of one moment.
    """
    options, rule = plan.schema.splits, SplitRule(seed=plan.schema.splits.seed)
    count, low, high = bounds(spools.times)
    if plan.unlabelled or count == 0:
        return rule
    if options.by == "time":
        if options.test is not None:
            rule.test_from = plan.clock.moment(options.test, "splits.test")
            rule.valid_from = rule.test_from
            if options.valid is not None:
                rule.valid_from = plan.clock.moment(options.valid, "splits.valid")
            if rule.valid_from <= low:
                raise ConfigError(f"splits.{'valid' if options.valid else 'test'}: no row is earlier, so "
                                  "none "
                                  "would train")  # fmt: skip
        else:
            ranks = [round(float(share) * count) for share in np.cumsum(options.fractions)[:2]]
            cuts = [order_statistic(spools.times, r, low, high) if r < count else high + 1 for r in ranks]
            rule.valid_from, rule.test_from = cuts
            if cuts[0] <= low:
                raise DataError(f"{plan.rows[0][0].path}: too many rows are of the first moment to split "
                                "the log by "
                                "time; set splits.by")  # fmt: skip
    present = np.zeros(3, dtype=np.int64)
    for piece in spools.rows.pieces():
        present += np.bincount(rule.codes(piece.filter("r")), minlength=3)
    if present[VALID]:
        return rule
    if plan.timed:

        def train_times() -> Iterator[Int[np.ndarray, " rows"]]:
            for piece in spools.rows.pieces():
                kept = piece.filter("r")
                yield kept["t"].to_numpy()[rule.codes(kept) == TRAIN]

        number, first, last = bounds(train_times)
        if number:
            rank = min(round((1 - options.valid_fraction) * number), number - 1)
            until = order_statistic(train_times, rank, first, last)
            rule_made = until > first
            rule.train_until = until if rule_made else None
            if rule_made:
                plan.notices.append(f"there was no valid split: the last {options.valid_fraction:.0%} of "
                                    "train in time "
                                    "became valid")  # fmt: skip
                return rule
    rule.random_valid = options.valid_fraction
    plan.notices.append(f"there was no valid split: {options.valid_fraction:.0%} of the train rows, drawn "
                        "by a "
                        "hash, became valid")  # fmt: skip
    return rule


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
class _Seen:
    """Counts of the first fitting pass."""

    items: Counter = field(default_factory=Counter)
    users: Counter = field(default_factory=Counter)
    train_items: Counter = field(default_factory=Counter)
    train_users: Counter = field(default_factory=Counter)
    first_item: list[pl.DataFrame] = field(default_factory=list)
    first_user: list[pl.DataFrame] = field(default_factory=list)


def fit(plan: Plan, spools: Spools, rule: SplitRule, frozen: Frozen | None = None) -> Fitted:
    """Learn from the training rows, or apply what another preparation learned.

    Args:
        plan: The opened log.
        spools: Its rows.
        rule: Their splits.
        frozen: What was learned before; None: learn.

    Raises:
        DataError: Tables have mistakes, or the training rows are all of one class.
    """
    seen = _Seen()
    rows, clicks = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    behaviours, train_end, labelled = 0, 0, True
    for piece in spools.rows.pieces():
        kept = piece["r"].to_numpy()
        code = rule.codes(piece)
        train = kept & ((code == TRAIN) | (plan.schema.fit == "all"))
        labelled &= not piece["y"].null_count()
        label = piece["y"].fill_null(0).to_numpy()
        rows += np.bincount(code[kept], minlength=3)
        clicks += np.bincount(code[kept & (label == 1)], minlength=3)
        behaviours += int(piece["b"].sum())
        if train.any():
            train_end = max(train_end, int(piece["t"].to_numpy()[train].max()))
        _count(seen, piece, train)
        if frozen is None:
            for encoder in plan.in_log("context"):
                encoder.add(piece[f"f:{encoder.name}"].filter(train))
            if not plan.windows:
                chosen = piece["b"].to_numpy() & (code == TRAIN)
                _add_columns(plan, piece, chosen)
        _first_values(plan, piece, seen)
    for piece in spools.past.pieces():
        _count(seen, piece, piece["t"].to_numpy() <= train_end)
        behaviours += len(piece)
        if frozen is None:
            _add_columns(plan, piece, piece["t"].to_numpy() <= train_end)
    for spool in (spools.given, spools.rows):
        for piece in spool.pieces() if plan.windows else ():
            if "h" in piece.columns:
                _count_lists(plan, seen, piece, frozen is None)
                behaviours += int(piece["h"].list.len().sum())
    if not rows.sum():
        raise DataError(f"{plan.rows[0][0].path}: no rows are left to learn from")
    fitted = _ids(plan, seen, frozen)
    fitted.rows, fitted.clicks, fitted.behaviours, fitted.labelled = rows, clicks, behaviours, labelled
    if frozen is None:
        _check_classes(plan, rows, clicks)
        for encoder in (*plan.in_log("context"), *plan.columns.values()):
            encoder.finish()
    _tables(plan, seen, fitted, frozen)
    return fitted


def _count(seen: _Seen, piece: pl.DataFrame, train: Shaped[np.ndarray, " rows"]) -> None:
    seen.users.add(piece["u"])
    seen.items.add(piece["i"])
    seen.train_users.add(piece["u"].filter(train))
    item = piece["i"].filter(train)
    seen.train_items.add(item.filter(~item.str.starts_with(UNNAMED)))


def _count_lists(plan: Plan, seen: _Seen, piece: pl.DataFrame, learn: bool) -> None:
    """Count given behaviours; of train rows, and of users' histories for train or for all."""
    train = piece["s"].to_numpy() <= TRAIN
    flat = piece["h"].explode(empty_as_null=False, keep_nulls=False)
    owner = np.repeat(train, piece["h"].list.len().to_numpy())
    seen.items.add(flat)
    seen.users.add(piece["u"])
    seen.train_items.add(flat.filter(owner & ~flat.str.starts_with(UNNAMED).to_numpy()))
    for name, encoder in plan.columns.items():
        if learn:
            encoder.add(piece[f"c:{name}"].explode(empty_as_null=False, keep_nulls=False).filter(owner))


def _add_columns(plan: Plan, piece: pl.DataFrame, chosen: Shaped[np.ndarray, " rows"]) -> None:
    for name, encoder in plan.columns.items():
        if f"c:{name}" in piece.columns:
            encoder.add(piece[f"c:{name}"].filter(chosen))


def _first_values(plan: Plan, piece: pl.DataFrame, seen: _Seen) -> None:
    """Keep of every item and user the features of its earliest row; of several the smallest."""
    for source, key, kept in (("item", "i", seen.first_item), ("user", "u", seen.first_user)):
        names = [f"f:{encoder.name}" for encoder in plan.in_log(source)]
        if names:
            kept.append(piece.select(key, "t", *names))
            if len(kept) > 1 and sum(map(len, kept)) > max(500_000, 2 * len(kept[0])):
                kept[:] = [_earliest(kept, key)]


def _earliest(pieces: list[pl.DataFrame], key: str) -> pl.DataFrame:
    frame = pl.concat(pieces)
    by = [pl.col(c) for c in frame.columns if not isinstance(frame.schema[c], pl.List)]
    return frame.sort(by, nulls_last=True).unique(key, keep="first", maintain_order=True)


def _ids(plan: Plan, seen: _Seen, frozen: Frozen | None) -> Fitted:
    """Indices of items and users, and which of them have a vector of their own."""
    options = plan.schema.ids
    items = Vocabulary.fit(seen.items, 1, first=1)
    keys = seen.users.result()["value"].sort()
    hashed = stable_hash(keys, plan.schema.seed)
    order = np.argsort(hashed, kind="stable")
    users = Vocabulary(keys[order], first=0)
    item_hash = np.concatenate([[np.uint64(0)], stable_hash(items.values, plan.schema.history.tie_seed)])
    learned_items = learned_users = None
    if frozen is not None:
        learned_items, learned_users = frozen.items, frozen.users
    else:
        if options.item:
            learned_items = Vocabulary.fit(seen.train_items, options.item_min_count)
        if options.user:
            learned_users = Vocabulary.fit(seen.train_users, options.user_min_count)
    return Fitted(items, users, item_hash, hashed[order], learned_items, learned_users)


def _check_classes(plan: Plan, rows: Int[np.ndarray, " splits"], clicks: Int[np.ndarray, " splits"]) -> None:
    where, label = plan.rows[0][0].path, plan.schema.columns.label
    if not rows[TRAIN]:
        raise DataError(f"{where}: no row is in train; see splits")
    if plan.schema.negatives is not None:
        return
    if clicks[TRAIN] in (0, rows[TRAIN]):
        only = "1" if clicks[TRAIN] else "0"
        raise DataError(f"{where}: column '{label}', row 0: the label is {only} in all {rows[TRAIN]} train "
                        "rows; there "
                        "is nothing to learn (is the rule right?)")  # fmt: skip
    for split in (VALID, TEST):
        if rows[split] and clicks[split] in (0, rows[split]):
            plan.notices.append(f"{SPLITS[split]}: the label is {int(clicks[split] > 0)} in all its "
                                f"{rows[split]} rows; AUC "
                                "cannot be computed there")  # fmt: skip


def _tables(plan: Plan, seen: _Seen, fitted: Fitted, frozen: Frozen | None) -> None:
    """Encoded features of items and users, from the log and from their tables."""
    for source, ids, counter, first, key in (
        ("item", fitted.items, seen.train_items, seen.first_item, "i"),
        ("user", fitted.users, seen.train_users, seen.first_user, "u"),
    ):
        encoders = plan.of(source)
        if not encoders:
            continue
        counts = counter.result()
        weight = np.zeros(ids.size, dtype=np.int64)
        weight[ids.encode(counts["value"])] = counts["count"].to_numpy()
        if first:
            _from_log(plan, source, _earliest(first, key), key, ids, weight, fitted, frozen)
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
            frozen.fill(encoder, ids, table, raw.is_null().to_numpy(), code)


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
        _say_lacking(plan, table, ids, there)
        if frozen is not None:
            told = np.flatnonzero(there)
            for encoder in encoders:
                frozen.fill(encoder, ids, fitted.tables[encoder.name], np.zeros(0, bool), told)


def _table_pieces(
    plan: Plan, table: Table, columns: list[str], size: int
) -> Iterator[tuple[LogFile, int, pl.DataFrame, Shaped[np.ndarray, " entries"]]]:
    """The pieces of all files of a table, each with a mark per entry that lasts for the file."""
    for file in table.files:
        marks = np.zeros(size, dtype=bool)
        with plan.mistakes.noted():
            for first, frame in file.pieces(columns, plan.progress):
                yield file, first, frame, marks


def _say_lacking(plan: Plan, table: Table, ids: Vocabulary, there: Shaped[np.ndarray, " entries"]) -> None:
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
        missing: Shaped[np.ndarray, " rows"],
        told: Int[np.ndarray, " rows"],
    ) -> None:
        """Where the new files do not know a feature of an entry, take what the old ones knew."""
        old = self.entries.get(encoder.source)
        if old is None or encoder.name not in old.columns:
            return
        code, known = _known(ids, old["id"])
        new = np.zeros(ids.size, dtype=bool)
        new[told[~missing] if len(missing) else told] = True
        take = known & ~new[code]
        table[code[take]] = old[encoder.name].to_numpy()[take]
