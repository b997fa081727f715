"""What is in a prepared data set: lengths, clicks, popularity, what is new in each split, leaks."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from common.metrics.ctr import DEFAULT_BUCKETS, Bucket, bucket_masks
from common.report.page.charts import bar_chart, dot_chart, line_chart
from common.report.page.render import Page, Section, Titled
from common.report.panels import Panel, Series
from common.report.tables import MISSING, Table
from lain.data.store import Split, Store
from lain.formats.log.checks import leaks

EDGES = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
"""Where the bars of the length histogram begin; the last is open."""

TOP_SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Shares of the most popular items."""

MOST_POPULAR = 10
"""Items that are named."""

PERIODS = 20
"""Points of the click rate over time."""

TRAIN = "train"
WHOLE = "all"
DAY = 86400.0


def data_page(path: Path, *, buckets: Sequence[Bucket] = DEFAULT_BUCKETS) -> Page:
    """A page about a prepared data set.

    Args:
        path: Its folder.
        buckets: Ranges of true history length.

    Raises:
        DataError: There is none, or it was damaged.
    """
    store = Store.open(path)
    missing = []
    if TRAIN not in store.splits:
        missing.append("No training split: nothing is said about popularity and about new items and users.")
    over_time = _over_time(store)
    if over_time is None:
        missing.append("No click rate over time: the rows have no time.")
    sections = [_lengths(store), _clicks(store, buckets)]
    sections += [over_time] if over_time is not None else []
    if TRAIN in store.splits:
        sections += [_popularity(store), _new(store)]
    sections += [_leaks(store), _about(store)]
    return Page(
        "CTR data", store.name, f"What is in {path}?", _answer(store), missing, sections, store.fingerprint
    )


def _percent(part: float | int, whole: float | int, digits: int = 1) -> str:
    return f"{100 * part / whole:.{digits}f} %" if whole else MISSING


def _answer(store: Store) -> list[str]:
    rows = ", ".join(f"{count:,} {name}" for name, count in store.splits.items())
    found = [f"{store.num_users:,} users, {store.num_items - 1:,} items, rows: {rows}."]
    if TRAIN in store.splits:
        split = store.split(TRAIN)
        length = np.asarray(split.length)
        users, rows_of = np.unique(np.asarray(split.user), return_counts=True)
        longest = np.zeros(store.num_users, dtype=np.int64)
        np.maximum.at(longest, split.user, length)
        short, clicks = longest[users] < 100, float((np.asarray(split.label) == 1).sum())
        found.append(
            f"{_percent(float(short.sum()), len(users))} of the users with training rows have fewer than 100 "
            f"behaviours and give {_percent(float(rows_of[short].sum()), len(split))} of these rows. "
            f"{_percent(clicks, len(split))} of the training rows are clicks."
        )
    return found


def _about(store: Store) -> Section:
    features = [
        [f.name, f.source, f.kind, str(f.size) if f.size else "", str(f.width)] for f in store.features
    ]
    notes = [(name, str(value)) for name, value in store.notes.items()]
    return Section(
        "What it holds",
        facts=[("folder", str(store.path)), ("fingerprint", store.fingerprint), *notes],
        tables=[Titled("Features", Table(["name", "of", "kind", "values", "width"], features, "lllrr"))],
    )


def histogram(lengths: Int[np.ndarray, " users"]) -> tuple[list[str], list[int]]:
    """How many lengths fall between the edges, from the first to the last range that holds one.

    Args:
        lengths: Lengths of histories.

    Returns:
        Names of the ranges, both ends included, and counts.
    """
    counts = np.histogram(lengths, bins=[*EDGES, np.inf])[0]
    filled = np.flatnonzero(counts)
    ends = [*(str(high - 1) for high in EDGES[1:]), "more"]
    names = [str(low) if str(low) == end else f"{low} to {end}" for low, end in zip(EDGES, ends, strict=True)]
    chosen = range(filled[0], filled[-1] + 1) if len(filled) else range(0)
    return [names[i] for i in chosen], [int(counts[i]) for i in chosen]


def _lengths(store: Store) -> Section:
    panels = []
    names, counts = histogram(np.asarray(store.histories.lengths))
    panels.append(
        Panel("Users by stored history", [Series("users", names, list(map(float, counts)))], "behaviours")
    )
    for name in store.splits:
        names, counts = histogram(np.asarray(store.split(name).length))
        title = f"{name}: rows by true history length"
        panels.append(Panel(title, [Series("rows", names, list(map(float, counts)))], "behaviours"))
    return Section(
        "History lengths",
        text=["The true length of a row counts every behaviour before it, also those that are not stored."],
        charts=[bar_chart(panel) for panel in panels if panel.series[0].x],
    )


def wilson(clicks: int, rows: int) -> tuple[float, float]:
    """95 % interval of a share: Wilson's, for rows that are independent.

    Args:
        clicks: How many.
        rows: Of how many; above 0.
    """
    z = 1.959964
    share, spread = clicks / rows, z * z / rows
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * np.sqrt(share * (1 - share) / rows + spread / (4 * rows))
    return float(middle - half), float(middle + half)


def _groups(split: Split, buckets: Sequence[Bucket]) -> dict[str, Bool[np.ndarray, " rows"]]:
    length = np.asarray(split.length)
    return {WHOLE: np.ones(len(split), dtype=bool), **bucket_masks(length, buckets)}


def _clicks(store: Store, buckets: Sequence[Bucket]) -> Section:
    rows, series = [], []
    for name in store.splits:
        split = store.split(name)
        user, label = np.asarray(split.user), np.asarray(split.label)
        shares, low, high = [], [], []
        for group, mask in _groups(split, buckets).items():
            count, clicks = int(mask.sum()), int(label[mask].sum())
            ends = wilson(clicks, count) if count else (np.nan, np.nan)
            shares.append(100 * clicks / count if count else np.nan)
            low.append(100 * ends[0])
            high.append(100 * ends[1])
            users = len(np.unique(user[mask]))
            interval = f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if count else ""
            rows.append([name, group, f"{users}", f"{count}", _percent(count, len(split)),
                         _percent(clicks, count), interval])  # fmt: skip
        series.append(Series(name, list(_groups(split, buckets)), shares, low, high))
    headers = ["split", "length", "users", "rows", "of all rows", "clicked", "95 % interval, %"]
    return Section(
        "Users, rows and clicks by history length",
        charts=[dot_chart(Panel("Click rate", series, "true history length", "clicked, %"))],
        tables=[Titled("By split and bucket", Table(headers, rows, "llrrrrr"))],
    )


def _times(store: Store) -> dict[str, Int[np.ndarray, " rows"]]:
    named = [f.name for f in store.features if f.source == "context" and f.kind == "time"]
    if not named:
        return {}
    return {split: np.asarray(store.split(split).context[named[0]]) for split in store.splits}


def _over_time(store: Store) -> Section | None:
    times = {name: time for name, time in _times(store).items() if len(time)}
    if not times:
        return None
    first = min(int(time.min()) for time in times.values())
    last = max(int(time.max()) for time in times.values())
    edges = np.linspace(first, last + 1, PERIODS + 1)
    shares, counts = [], []
    for name, time in times.items():
        label = np.asarray(store.split(name).label)
        place = np.digitize(time, edges) - 1
        rows = np.bincount(place, minlength=PERIODS)
        clicks = np.bincount(place, weights=label, minlength=PERIODS)
        filled = np.flatnonzero(rows)
        days = [float((edges[i] + edges[i + 1]) / 2 - first) / DAY for i in filled]
        shares.append(Series(name, days, [100 * float(clicks[i] / rows[i]) for i in filled]))
        counts.append(Series(name, days, [float(rows[i]) for i in filled]))
    begin = datetime.datetime.fromtimestamp(first, tz=datetime.UTC)
    end = datetime.datetime.fromtimestamp(last, tz=datetime.UTC)
    label_of_x = f"days since {begin:%Y-%m-%d %H:%M} UTC"
    return Section(
        "Clicks over time",
        text=[f"Rows from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, in {PERIODS} equal periods."],
        charts=[
            line_chart(Panel("Click rate", shares, label_of_x, "clicked, %")),
            line_chart(Panel("Rows", counts, label_of_x, "rows", zero=True)),
        ],
    )


def _popularity(store: Store) -> Section:
    split = store.split(TRAIN)
    shown = np.bincount(np.asarray(split.item), minlength=store.num_items)
    clicks = np.bincount(np.asarray(split.item), weights=np.asarray(split.label), minlength=store.num_items)
    behaved = np.bincount(np.asarray(store.histories.values), minlength=store.num_items)
    names = [f"top {100 * share:g} %" for share in TOP_SHARES]
    series = []
    for title, counts in (("training rows", shown), ("behaviours", behaved)):
        falling = np.sort(counts[1:])[::-1].cumsum()
        if len(falling) and falling[-1]:
            places = [max(1, round(share * len(falling))) - 1 for share in TOP_SHARES]
            series.append(Series(title, names, [100 * float(falling[p] / falling[-1]) for p in places]))
    top = np.argsort(-shown, kind="stable")[:MOST_POPULAR]
    rows = [
        [str(item), str(shown[item]), _percent(float(shown[item]), len(split)),
         _percent(float(clicks[item]), float(shown[item])), str(behaved[item])]
        for item in top if shown[item]
    ]  # fmt: skip
    never = int((shown[1:] == 0).sum())
    return Section(
        "Popularity of items",
        text=[f"{never:,} of {store.num_items - 1:,} items are the target of no training row."],
        charts=[bar_chart(Panel("Share of the most popular items", series, "items", "%"))] if series else [],
        tables=[
            Titled("Items with the most training rows",
                   Table(["item", "training rows", "of all", "clicked", "behaviours"], rows))
        ],
    )  # fmt: skip


def _new(store: Store) -> Section:
    train = store.split(TRAIN)
    items, users = np.zeros(store.num_items, dtype=bool), np.zeros(store.num_users, dtype=bool)
    items[np.asarray(train.item)] = True
    users[np.asarray(train.user)] = True
    rows = []
    for name in (name for name in store.splits if name != TRAIN):
        split = store.split(name)
        cells = [name]
        for known, column in ((items, split.item), (users, split.user)):
            values = np.asarray(column)
            different = np.unique(values)
            cells += [_percent(float((~known[values]).sum()), len(values)),
                      f"{int((~known[different]).sum())} of {len(different)}"]  # fmt: skip
        rows.append(cells)
    headers = ["split", "rows with a new item", "new items", "rows of a new user", "new users"]
    return Section(
        "New items and users",
        text=["New means: in no training row, as target or as user."],
        tables=[Titled("By split", Table(headers, rows))],
    )


def _leaks(store: Store) -> Section:
    rows = [["known signs of leaks", line, "look"] for line in leaks(store.path)]
    rows = rows or [["target last in its own history, telling features, sparse ids", "none", "fine"]]
    return Section(
        "Leak checks",
        tables=[
            Titled("Checks", Table(["check", "found", ""], [*rows, *_shared(store), *_order(store)], "lll"))
        ],
    )


def _frame(split: Split) -> pl.DataFrame:
    return pl.DataFrame({name: np.asarray(getattr(split, name)) for name in ("user", "item", "end")})


def _shared(store: Store) -> Iterator[list[str]]:
    """Rows of other splits that stand in the training rows too: same user, target and history."""
    if TRAIN not in store.splits:
        return
    train = _frame(store.split(TRAIN)).unique()
    for name in (name for name in store.splits if name != TRAIN):
        rows = _frame(store.split(name))
        both = rows.join(train, on=rows.columns, how="semi").height
        found = f"{both} of {rows.height} rows" if both else "none"
        yield [f"{name}: same user, item and history as a training row", found, "look" if both else "fine"]


def _order(store: Store) -> Iterator[list[str]]:
    """Whether other splits come after the training rows."""
    times = _times(store)
    if TRAIN not in store.splits or not len(store.split(TRAIN)):
        return
    for name in (name for name in store.splits if name != TRAIN and len(store.split(name))):
        if times:
            early = int((times[name] < times[TRAIN].max()).sum())
            check = f"{name}: rows earlier than the last training row"
        else:
            train, split = store.split(TRAIN), store.split(name)
            longest = np.zeros(store.num_users, dtype=np.int64)
            np.maximum.at(longest, train.user, train.end)
            early = int((np.asarray(split.end) < longest[np.asarray(split.user)]).sum())
            check = f"{name}: rows before the last training row of their user, by their histories"
        found = f"{early} of {len(store.split(name))} rows" if early else "none"
        yield [check, found, "look, unless the split is random" if early else "fine"]
