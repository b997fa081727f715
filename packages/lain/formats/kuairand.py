"""KuaiRand: real short-video exposures with click or no click.

The folder has ``val.parquet`` and ``test.parquet`` (exposures, one row each), ``user_sequences.parquet``
(before the first exposure: true number of exposures and the last 50), ``item_features.parquet`` and
``user_features.parquet``. A user's history is his ``watch_seq`` followed by his own exposures in val and
test, clicked or not, in time order. A row sees those strictly earlier by ``time_ms``.

Outcome columns of a row and the statistics in item_features, which are taken over the whole period,
are never read.

Over 400 lines: one layout, from its five files to features, histories and splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Ge
from jaxtyping import Bool, Int, Shaped, UInt8

from common.errors import ConfigError
from common.ragged import Ragged, span_positions
from lain.data.schema import Feature
from lain.data.writer import StoreWriter
from lain.formats.tables import (
    Mistakes,
    Progress,
    Table,
    encode,
    is_any,
    is_number,
    is_text,
    is_whole,
    is_whole_list,
    owners,
    require_files,
    vocabulary,
)

FILES = (
    "val.parquet",
    "test.parquet",
    "item_features.parquet",
    "user_features.parquet",
    "user_sequences.parquet",
)

USER_FEATURES = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{number}" for number in range(18)),
)
"""Columns of user_features that become categorical features."""

ITEM_FEATURES = ("video_type", "upload_type", "music_type")
"""Columns of item_features that become categorical features as they are."""

DURATION_EDGES = (7, 15, 30, 60, 120, 300)
"""Seconds at which the buckets of a video's duration end."""

AGE_EDGES = (1, 3, 7, 14, 30, 90)
"""Days at which the buckets of the time since a video's upload end."""

SHARED_AUTHOR = 1
"""Id of all authors with a single video, who are no more than that video."""

EXPOSURE_COLUMNS = ("user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "tab")


@dataclass(frozen=True, eq=False)
class _Exposures:
    """The exposures of val and test, in time order; users and items are indices into the store."""

    user: Int[np.ndarray, " rows"]
    item: Int[np.ndarray, " rows"]
    time: Int[np.ndarray, " rows"]
    date: Int[np.ndarray, " rows"]
    hour: Int[np.ndarray, " rows"]
    tab: Int[np.ndarray, " rows"]
    label: UInt8[np.ndarray, " rows"]
    in_test: Bool[np.ndarray, " rows"]


def prepare_kuairand(
    source: Path, out: Path, progress: Progress, *, valid_days: Annotated[int, Ge(0)] = 1
) -> list[str]:
    """Prepare a KuaiRand folder.

    Train rows are val.parquet without its last days, valid rows those last days, test rows test.parquet;
    the rows of each are in time order. Item features (``item_id``, author, tags, types, duration) have
    the whole item file as vocabulary; user features and those of the moment (tab, hour, weekday, days
    since upload) only what occurs in train rows. Whatever is missing or not in the vocabulary is 0.

    Args:
        source: The folder.
        out: The store to write.
        progress: Says how far reading is.
        valid_days: Last days of val.parquet that become the valid split; 0: there is none.

    Raises:
        ConfigError: ``valid_days`` leaves no rows to train on.
        DataError: The files have mistakes.
    """
    mistakes = Mistakes()
    with mistakes.noted():
        require_files(source, FILES, "kuairand")
    tables = {name: Table(source / name, mistakes, progress) for name in FILES}
    _require_columns(tables)
    videos, item_ids = _identified(tables["item_features.parquet"], "video_id")
    people, user_ids = _identified(tables["user_features.parquet"], "user_id")
    past = _read_past(tables["user_sequences.parquet"], item_ids, user_ids)
    pieces = _read_exposures(tables, item_ids, user_ids, past)
    mistakes.raise_all()
    rows = _exposures(pieces)
    histories, end, length = _histories(rows, _starts(past, len(user_ids)))
    split_rows = _split_rows(rows, valid_days)
    features, item_tables = _item_features(videos)
    user_features, user_tables = _user_features(people, rows.user[split_rows["train"]])
    context_features, context = _context(rows, split_rows["train"], videos)
    writer = StoreWriter(
        out,
        name="kuairand",
        features=[*features, *user_features, *context_features],
        num_items=len(item_ids) + 1,
        num_users=len(user_ids),
        notes={"format": "kuairand", "label": "is_click", "valid_days": valid_days},
    )
    with writer as store:
        for name, values in item_tables.items():
            store.items(name, np.concatenate((np.zeros_like(values[:1]), values)))
        for name, values in user_tables.items():
            store.users(name, values)
        store.histories(histories)
        for name, chosen in split_rows.items():
            store.split(name, len(chosen)).append(
                user=rows.user[chosen],
                item=rows.item[chosen],
                end=end[chosen],
                length=length[chosen],
                label=rows.label[chosen],
                context={feature: values[chosen] for feature, values in context.items()},
            )
    return []


def _require_columns(tables: dict[str, Table]) -> None:
    for name in ("val.parquet", "test.parquet"):
        for column in EXPOSURE_COLUMNS:
            if column == "is_click":
                tables[name].require(column, is_number, "0 and 1")
            else:
                tables[name].require(column, is_whole, "whole numbers")
    items, users = tables["item_features.parquet"], tables["user_features.parquet"]
    items.require("video_id", is_whole, "whole numbers")
    items.require("video_duration", is_number, "numbers")
    for column in ("author_id", *ITEM_FEATURES):
        items.require(column, is_any, "single values")
    for column in ("tag", "upload_dt"):
        items.require(column, is_text, "text")
    users.require("user_id", is_whole, "whole numbers")
    for column in USER_FEATURES:
        users.require(column, is_any, "single values")
    sequences = tables["user_sequences.parquet"]
    for column in ("user_id", "history_len", "last_time_ms"):
        sequences.require(column, is_whole, "whole numbers")
    sequences.require("watch_seq", is_whole_list, "lists of whole numbers")


def _identified(table: Table, column: str) -> tuple[Any, Any]:
    """The sound columns of a feature table, and its ids; None for what cannot be read."""
    with table.mistakes.noted():
        content = table.whole(table.sound)
        return content, _identifiers(table, column, content) if column in content.column_names else None
    return None, None


def _identifiers(table: Table, column: str, content: Any) -> Any:
    """The ids of a feature table, in its order; an id twice is a mistake."""
    values = table.integers(column, content[column].combine_chunks(), 0)
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    table.mistakes.check(~first, table, column, 0, "{} is there twice", values)
    return pa.array(values)


def _positions(table: Table, column: str, first: int, values: np.ndarray, ids: Any, home: str) -> np.ndarray:
    """Where ids stand in the feature table; strange ones are noted and become -1."""
    found = encode(pa.array(values), ids) - 1
    table.mistakes.check(found < 0, table, column, first, f"{{}} is not in {home}", values)
    return np.asarray(found, dtype=np.int64)


def _read_exposures(
    tables: dict[str, Table], item_ids: Any, user_ids: Any, past: dict[str, Any]
) -> dict[str, list[np.ndarray]]:
    """The sound columns of val and test in pieces; users and items are positions where ids are known."""
    parts: dict[str, list[np.ndarray]] = {column: [] for column in (*EXPOSURE_COLUMNS, "in_test")}
    last = None
    if user_ids is not None and {"user_id", "last_time_ms"} <= past.keys():
        last = np.append(past["last_time_ms"], -1)[_rows_of_users(past["user_id"], len(user_ids))]
    for name in ("val.parquet", "test.parquet"):
        table = tables[name]
        check = table.mistakes.check
        with table.mistakes.noted():
            for first, piece in table.pieces(table.sound):
                numbers = {
                    column: (table.labels if column == "is_click" else table.integers)(
                        column, piece.column(column), first
                    )
                    for column in table.sound
                }
                if "video_id" in numbers and item_ids is not None:
                    numbers["video_id"] = _positions(
                        table, "video_id", first, numbers["video_id"], item_ids, "item_features.parquet"
                    )
                if "user_id" in numbers and user_ids is not None:
                    numbers["user_id"] = _positions(
                        table, "user_id", first, numbers["user_id"], user_ids, "user_features.parquet"
                    )
                if {"user_id", "time_ms"} <= numbers.keys() and last is not None:
                    time = numbers["time_ms"]
                    line = "a row at {} is older than the end of its user's watch_seq"
                    check(time < last[numbers["user_id"]], table, "time_ms", first, line, time)
                if "date" in numbers:
                    date = numbers["date"]
                    check(_day_number(date) < 0, table, "date", first, "{} is not a date YYYYMMDD", date)
                numbers["in_test"] = np.full(piece.num_rows, name == "test.parquet")
                for column, values in numbers.items():
                    parts[column].append(values)
    return parts


def _exposures(parts: dict[str, list[np.ndarray]]) -> _Exposures:
    whole = {column: np.concatenate(values) for column, values in parts.items()}
    order = np.argsort(whole["time_ms"], kind="stable")
    whole = {column: values[order] for column, values in whole.items()}
    return _Exposures(
        user=whole["user_id"],
        item=whole["video_id"] + 1,
        time=whole["time_ms"],
        date=whole["date"],
        hour=whole["hourmin"] // 100,
        tab=whole["tab"],
        label=whole["is_click"],
        in_test=whole["in_test"],
    )


@dataclass(frozen=True, eq=False)
class _Starts:
    """What each user saw before the exposures: the last items, their true number, the time of the last."""

    items: Ragged
    length: Int[np.ndarray, " users"]
    last_time: Int[np.ndarray, " users"]


def _read_past(table: Table, item_ids: Any, user_ids: Any) -> dict[str, Any]:
    """The sound columns of user_sequences; users and items are positions where ids are known."""
    found: dict[str, Any] = {}
    check = table.mistakes.check
    with table.mistakes.noted():
        content = table.whole(table.sound)
        for column in ("history_len", "last_time_ms"):
            if column in content.column_names:
                found[column] = table.integers(column, content[column].combine_chunks(), 0)
        if "user_id" in content.column_names:
            owner = _identifiers(table, "user_id", content).to_numpy()
            if user_ids is not None:
                found["user_id"] = _positions(table, "user_id", 0, owner, user_ids, "user_features.parquet")
        if "watch_seq" in content.column_names:
            lists = table.lists("watch_seq", content["watch_seq"].combine_chunks(), 0)
            if item_ids is not None:
                item = encode(pa.array(lists.values), item_ids).astype(np.int64)
                bad = np.zeros(len(lists), dtype=bool)
                bad[owners(lists)[item == 0]] = True
                check(bad, table, "watch_seq", 0, "an item that is not in item_features.parquet")
                found["watch_seq"] = Ragged(item, lists.offsets)
            if "history_len" in found:
                number = found["history_len"]
                line = "{} is less than the {} items of watch_seq"
                check(number < lists.lengths, table, "history_len", 0, line, number, lists.lengths)
    return found


def _rows_of_users(who: Int[np.ndarray, " rows"], users: int) -> Int[np.ndarray, " slots"]:
    """The row of user_sequences of every user, and of a stranger; the number of rows where there is none."""
    row = np.full(users + 1, len(who))
    row[who] = np.arange(len(who))
    row[-1] = len(who)
    return row


def _starts(past: dict[str, Any], users: int) -> _Starts:
    row = _rows_of_users(past["user_id"], users)[:-1]
    lists: Ragged = past["watch_seq"]
    with_nobody = Ragged(lists.values, np.append(lists.offsets, len(lists.values)))
    return _Starts(
        items=with_nobody.gather(row),
        length=np.append(past["history_len"], 0)[row],
        last_time=np.append(past["last_time_ms"], -1)[row],
    )


def _histories(
    rows: _Exposures, start: _Starts
) -> tuple[Ragged, Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """Every user's sequence, and for every row how many of it come before, stored and truly.

    A row as old as the last item of watch_seq does not see that item.
    """
    users = len(start.items)
    count = np.bincount(rows.user, minlength=users)
    order = np.argsort(rows.user, kind="stable")  # by user, then by time
    user, time = rows.user[order], rows.time[order]
    own_first = np.cumsum(count) - count
    index = np.arange(len(order))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
    earlier = np.empty(len(order), dtype=np.int64)
    earlier[order] = np.maximum.accumulate(np.where(new, index, 0)) - own_first[user]

    begin = start.items.lengths
    offsets = np.concatenate(([0], np.cumsum(begin + count)))
    values = np.zeros(offsets[-1], dtype=np.int64)
    values[span_positions(offsets[:-1], begin)] = start.items.values
    values[span_positions(offsets[:-1] + begin, count)] = rows.item[order]
    tied = (rows.time == start.last_time[rows.user]).astype(np.int64)
    end = begin[rows.user] + earlier - tied
    return Ragged(values, offsets), end, start.length[rows.user] + earlier - tied


def _split_rows(rows: _Exposures, valid_days: int) -> dict[str, Int[np.ndarray, " chosen"]]:
    """Rows of each split, in time order."""
    days = np.unique(rows.date[~rows.in_test])
    if not 0 <= valid_days < len(days):
        raise ConfigError(f"valid_days: must be from 0 to {len(days) - 1} (val.parquet has {len(days)} "
                          f"days), got {valid_days}")  # fmt: skip
    late = rows.date >= days[len(days) - valid_days] if valid_days else np.zeros(len(rows.date), dtype=bool)
    splits = {
        "train": np.flatnonzero(~rows.in_test & ~late),
        "valid": np.flatnonzero(~rows.in_test & late),
        "test": np.flatnonzero(rows.in_test),
    }
    return {name: chosen for name, chosen in splits.items() if len(chosen)}


def _bucket(
    values: Shaped[np.ndarray, " rows"], edges: tuple[int, ...], known: Bool[np.ndarray, " rows"]
) -> Int[np.ndarray, " rows"]:
    """Buckets counted from 1 to ``len(edges) + 1``; 0 where the value is not known."""
    return np.asarray(np.where(known, np.digitize(values, edges) + 1, 0))


def _item_features(videos: Any) -> tuple[list[Feature], dict[str, np.ndarray]]:
    """Features of the items, without the padding item."""
    features = [Feature("item_id", "item", "categorical", 0)]
    tables: dict[str, np.ndarray] = {}

    counts = pc.value_counts(videos["author_id"]).flatten()
    several = vocabulary(counts[0].filter(pc.greater(counts[1], 1)))
    author = encode(videos["author_id"], several)
    alone = (author == 0) & videos["author_id"].is_valid().to_numpy()
    tables["author_id"] = np.where(author > 0, author + SHARED_AUTHOR, np.where(alone, SHARED_AUTHOR, 0))
    features.append(Feature("author_id", "item", "categorical", len(several) + SHARED_AUTHOR + 1))

    features_tag, tables["tag"] = _tags(videos["tag"])
    features.append(features_tag)

    for column in ITEM_FEATURES:
        words = vocabulary(videos[column])
        tables[column] = encode(videos[column], words)
        features.append(Feature(column, "item", "categorical", len(words) + 1))

    milliseconds = videos["video_duration"].cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
    known = np.isfinite(milliseconds)
    tables["duration"] = _bucket(np.where(known, milliseconds, 0) / 1000, DURATION_EDGES, known)
    features.append(Feature("duration", "item", "categorical", len(DURATION_EDGES) + 2))
    return features, tables


def _tags(column: Any) -> tuple[Feature, Int[np.ndarray, "items width"]]:
    """Tags are numbers joined by commas; "unknown" is no tag."""
    lists = pc.split_pattern(column.combine_chunks().fill_null(""), ",")
    words = vocabulary(lists.flatten())
    words = words.filter(pc.invert(pc.is_in(words, value_set=pa.array(["", "unknown"], words.type))))
    offsets = lists.offsets.to_numpy().astype(np.int64)
    table, _ = Ragged(encode(lists.flatten(), words), offsets).pad()
    return Feature("tag", "item", "list", len(words) + 1, table.shape[1]), table


def _user_features(
    people: Any, train_users: Int[np.ndarray, " rows"]
) -> tuple[list[Feature], dict[str, np.ndarray]]:
    """Features of the users; what no user of a train row has is 0."""
    features, tables, learned = [], {}, pa.array(np.unique(train_users))
    for column in USER_FEATURES:
        words = vocabulary(people[column].take(learned))
        tables[column] = encode(people[column], words)
        features.append(Feature(column, "user", "categorical", len(words) + 1))
    return features, tables


def _day_number(date: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """Days since 1970 of dates written YYYYMMDD; -1 for what is no date."""
    days = np.full(len(date), -1, dtype=np.int64)
    for value in np.unique(date):
        text = f"{value:08d}"
        try:
            day = np.datetime64(f"{text[:-4]}-{text[-4:-2]}-{text[-2:]}", "D")
        except ValueError:
            continue
        days[date == value] = day.astype(np.int64)
    return days


def _context(
    rows: _Exposures, train: Int[np.ndarray, " chosen"], videos: Any
) -> tuple[list[Feature], dict[str, np.ndarray]]:
    """Features of the moment of every row; what no train row has is 0."""
    day = _day_number(rows.date)
    text = pc.utf8_slice_codeunits(videos["upload_dt"], 0, 10)
    upload = pc.strptime(text, format="%Y-%m-%d", unit="s", error_is_null=True).cast(pa.date32())
    uploaded = upload.cast(pa.int32()).fill_null(-1).to_numpy().astype(np.int64)[rows.item - 1]
    values = {
        "tab": rows.tab,
        "hour": rows.hour,
        "weekday": (day + 3) % 7,  # 1970-01-01 was a Thursday; Monday is 0
        "days_since_upload": _bucket(day - uploaded, AGE_EDGES, uploaded >= 0),
    }
    features, context = [], {}
    for name, column in values.items():
        words = vocabulary(pa.array(column[train]))
        context[name] = encode(pa.array(column), words)
        features.append(Feature(name, "context", "categorical", len(words) + 1))
    return features, context
