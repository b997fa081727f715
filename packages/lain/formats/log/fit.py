"""What is learned from the training rows: splits, ids, vocabularies, scales, tables of items and users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from jaxtyping import Int, Shaped

from common.errors import ConfigError, DataError
from lain.formats.log.entries import Fitted, Frozen, tables
from lain.formats.log.plan import Plan
from lain.formats.log.scan import UNNAMED
from lain.formats.log.schema import SPLITS
from lain.formats.log.splits import bounds, order_statistic
from lain.formats.log.spool import Spool
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
class _Seen:
    """Counts of the first fitting pass."""

    items: Counter = field(default_factory=Counter)
    users: Counter = field(default_factory=Counter)
    train_items: Counter = field(default_factory=Counter)
    train_users: Counter = field(default_factory=Counter)
    first_item: list[pl.DataFrame] = field(default_factory=list)
    first_user: list[pl.DataFrame] = field(default_factory=list)


def fit(
    plan: Plan,
    spools: Spools,
    rule: SplitRule,
    frozen: Frozen | None = None,
    before: Frozen | None = None,
) -> Fitted:
    """Learn from the training rows, or apply what another preparation learned.

    Args:
        plan: The opened log.
        spools: Its rows.
        rule: Their splits.
        frozen: What was learned before; None: learn.
        before: Ids that keep their vectors; what is learned is put behind.

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
    if before is not None:
        fitted.learned_items = _grown(before.items, fitted.learned_items)
        fitted.learned_users = _grown(before.users, fitted.learned_users)
    fitted.rows, fitted.clicks, fitted.behaviours, fitted.labelled = rows, clicks, behaviours, labelled
    if frozen is None:
        _check_classes(plan, rows, clicks)
        for encoder in (*plan.in_log("context"), *plan.columns.values()):
            encoder.finish()
    counts = {"item": seen.train_items.result(), "user": seen.train_users.result()}
    pieces = {"item": (seen.first_item, "i"), "user": (seen.first_user, "u")}
    first = {source: _earliest(kept, key) for source, (kept, key) in pieces.items() if kept}
    tables(plan, fitted, counts, first, frozen)
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


def _grown(before: Vocabulary | None, found: Vocabulary | None) -> Vocabulary | None:
    return found if before is None or found is None else before.grown(found)


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
