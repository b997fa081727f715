"""MovieLens: ratings as clicks, all earlier ratings of a user as the history.

The folder has ``ratings.csv`` (userId, movieId, rating, timestamp) and ``movies.csv`` (movieId, genres).
The label of a row is 1 for a rating of at least 4. Its history is every movie that the user rated
strictly earlier, whatever the rating; ratings of the same second do not see one another. In the history of
a later row they stand in the order of a hash of the movie's id: the file lists them by ascending id, and a
model of sequences would learn that.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from common.errors import ConfigError, DataError
from common.ragged import Ragged
from lain.data.schema import Feature
from lain.data.writer import StoreWriter
from lain.formats.log.vocabulary import stable_hash
from lain.formats.tables import CsvTable, Mistakes, Progress, encode, require_files, vocabulary

FILES = ("ratings.csv", "movies.csv")
LIKED = 4.0
"""The lowest rating that counts as a click."""

RATING_COLUMNS = {
    "userId": pa.int64(),
    "movieId": pa.int64(),
    "rating": pa.float64(),
    "timestamp": pa.int64(),
}
TIE_SEED = 0
"""Decides the order of the ratings of one second in a history."""

NO_GENRE = "(no genres listed)"
_SPLITS = ("train", "valid", "test")


def prepare_movielens(
    source: Path, out: Path, progress: Progress, *, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
) -> list[str]:
    """Prepare a MovieLens folder.

    The ratings of all users are split at two moments: the first part in time trains, the last part
    tests; ratings of the same second stay together. The rows of each split are in time order.
    Items are the movies of movies.csv, their features ``item_id`` and the list ``genres``.

    Args:
        source: The folder.
        out: The store to write.
        progress: Says how far reading is.
        fractions: Shares of the ratings, in time order, that train, validate and test; the last two may be 0.

    Raises:
        ConfigError: The fractions are not shares of one.
        DataError: The files have mistakes.
    """
    if min(fractions) < 0 or fractions[0] == 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ConfigError(f"fractions: must be three shares of 1, the first above 0, got {list(fractions)}")
    mistakes = Mistakes()
    with mistakes.noted():
        require_files(source, FILES, "movielens")
    movies = CsvTable(source / "movies.csv", ["movieId", "genres"], mistakes, progress)
    ratings = CsvTable(source / "ratings.csv", RATING_COLUMNS, mistakes, progress)
    movie_ids, genres = _movies(movies)
    pieces = _ratings(ratings, movie_ids)
    mistakes.raise_all()

    user, item, label, time = (np.concatenate(pieces[column]) for column in RATING_COLUMNS)
    assert movie_ids is not None
    tie = stable_hash(cast("pl.Series", pl.from_arrow(movie_ids)).cast(pl.String), TIE_SEED)
    order = np.lexsort((tie[item - 1], time, user))
    user, item, label, time = user[order], item[order], label[order], time[order]
    index = np.arange(len(time))
    new_user = np.append(True, user[1:] != user[:-1])
    new_time = new_user | np.append(True, time[1:] != time[:-1])
    earlier = np.maximum.accumulate(np.where(new_time, index, 0)) - np.maximum.accumulate(
        np.where(new_user, index, 0)
    )
    owner = np.cumsum(new_user) - 1
    histories = Ragged(item, np.append(np.flatnonzero(new_user), len(user)))

    features, table = _genre_feature(genres)
    writer = StoreWriter(
        out,
        name="movielens",
        features=[Feature("item_id", "item", "categorical", 0), features],
        num_items=len(movie_ids) + 1,
        num_users=len(histories),
        notes={"format": "movielens", "label": f"rating >= {LIKED:g}", "fractions": list(fractions)},
    )
    with writer as store:
        store.items("genres", np.concatenate((np.zeros_like(table[:1]), table)))
        store.histories(histories)
        by_time = np.argsort(time, kind="stable")
        for name, rows in _split_rows(ratings.path, time[by_time], fractions).items():
            chosen = by_time[rows]
            store.split(name, len(chosen)).append(
                user=owner[chosen],
                item=item[chosen],
                end=earlier[chosen],
                length=earlier[chosen],
                label=label[chosen],
            )
    return []


def _split_rows(
    path: Path, time: Int[np.ndarray, " rows"], fractions: tuple[float, float, float]
) -> dict[str, slice]:
    """Where each split begins and ends among rows in time order; a split without rows is left out."""
    cuts = [0]
    for share in np.cumsum(fractions)[:2]:
        at = min(round(share * len(time)), len(time))
        cuts.append(int(np.searchsorted(time, time[at], side="left")) if at < len(time) else len(time))
    cuts.append(len(time))
    if cuts[1] == 0:
        raise DataError(f"{path}: too many ratings are of its first moment to split it by time")
    return {n: slice(a, b) for n, a, b in zip(_SPLITS, cuts, cuts[1:], strict=False) if a < b}


def _movies(table: CsvTable) -> tuple[Any, Any]:
    """Movie ids and genres, in ascending order of the ids; None for what cannot be read."""
    ids, genres = [], []
    with table.mistakes.noted():
        for first, piece in table.pieces():
            if "movieId" in table.columns:
                ids.append(table.numbers("movieId", piece.column("movieId"), first, pa.int64()))
            if "genres" in table.columns:
                genres.append(piece.column("genres"))
        if not ids:
            return None, None
        movie = np.concatenate(ids)
        first_time = np.zeros(len(movie), dtype=bool)
        first_time[np.unique(movie, return_index=True)[1]] = True
        table.mistakes.check(~first_time, table, "movieId", 0, "{} is there twice", movie)
        order = np.argsort(movie, kind="stable")
        texts = pa.chunked_array(genres, pa.string()).combine_chunks().take(order) if genres else None
        return pa.array(movie[order]), texts
    return None, None


def _ratings(table: CsvTable, movie_ids: Any) -> dict[str, list[np.ndarray]]:
    """User, item index (where the movies are known), label and time of every rating, under their columns."""
    parts: dict[str, list[np.ndarray]] = {column: [] for column in RATING_COLUMNS}
    with table.mistakes.noted():
        for first, piece in table.pieces():
            found = {
                column: table.numbers(column, piece.column(column), first, RATING_COLUMNS[column])
                for column in table.columns
            }
            if "userId" in found:
                found["userId"] = found["userId"].astype(np.int32)
            if "movieId" in found and movie_ids is not None:
                movie, line = found["movieId"], "movie {} is not in movies.csv"
                found["movieId"] = encode(pa.array(movie), movie_ids)
                table.mistakes.check(found["movieId"] == 0, table, "movieId", first, line, movie)
            if "rating" in found:
                rating, line = found["rating"], "{} is outside 0.5 to 5"
                table.mistakes.check((rating < 0.5) | (rating > 5), table, "rating", first, line, rating)
                found["rating"] = (rating >= LIKED).astype(np.uint8)
            for column, values in found.items():
                parts[column].append(values)
    return parts


def _genre_feature(column: Any) -> tuple[Feature, Int[np.ndarray, "items width"]]:
    """Genres are words joined by bars."""
    text = pc.replace_substring_regex(column.fill_null(""), f"^{re.escape(NO_GENRE)}$", "")
    lists = pc.split_pattern(text, "|")
    words = vocabulary(lists.flatten())
    words = words.filter(pc.not_equal(words, ""))
    table, _ = Ragged(encode(lists.flatten(), words), lists.offsets.to_numpy().astype(np.int64)).pad()
    return Feature("genres", "item", "list", len(words) + 1, table.shape[1]), table
