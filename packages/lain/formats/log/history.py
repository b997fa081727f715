"""Histories: behaviours of a user in the order of their time, and how many of them come before a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from lain.formats.log.values import SECOND


def behaviour_order(
    user: Int[np.ndarray, " behaviours"],
    time: Int[np.ndarray, " behaviours"],
    tie: Shaped[np.ndarray, " behaviours"],
    others: Sequence[Shaped[np.ndarray, " behaviours"]] = (),
) -> Int[np.ndarray, " behaviours"]:
    """Places of the behaviours by user, then time, then the hash of the item, then their other columns.

    Neither the order of the file nor that of the ids has a part in it.
    """
    return np.lexsort((*reversed(others), tie, time, user))


def earlier(
    behaviour_user: Int[np.ndarray, " behaviours"],
    behaviour_time: Int[np.ndarray, " behaviours"],
    user: Int[np.ndarray, " rows"],
    time: Int[np.ndarray, " rows"],
    users: int,
) -> Int[np.ndarray, " rows"]:
    """How many behaviours of its user come strictly before each row.

    Args:
        behaviour_user: Users of the behaviours, ascending.
        behaviour_time: Their times, ascending within a user.
        user: Users of the rows, from 0 to ``users - 1``.
        time: Times of the rows.
        users: Number of users.
    """
    moments = np.unique(behaviour_time)
    base = len(moments) + 1
    keys = behaviour_user * base + np.searchsorted(moments, behaviour_time)
    wanted = user * base + np.searchsorted(moments, time)
    start = np.searchsorted(behaviour_user, np.arange(users))
    return np.asarray(np.searchsorted(keys, wanted) - start[user], dtype=np.int64)


GAP_SIZE = 34


def gap_codes(time: Int[np.ndarray, " behaviours"], first: Shaped[np.ndarray, " behaviours"]) -> np.ndarray:
    """The time since the behaviour before in powers of two of seconds: 1 for the first one of a user.

    A gap of under one second is 2, of 1 to 2 seconds 3, of 2 to 4 seconds 4, and so on up to 33.
    """
    gap = np.diff(time, prepend=time[:1]) / SECOND
    exponent = np.where(gap >= 1, np.floor(np.log2(np.maximum(gap, 1))) + 1, 0)
    return np.where(first, 1, np.minimum(2 + exponent, GAP_SIZE - 1)).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Merged:
    """Several lists as windows of one sequence.

    Args:
        owner: Which list each entry of the sequence comes from.
        place: Its place in that list.
        start: Where each list begins in the sequence.
    """

    owner: Int[np.ndarray, " sequence"]
    place: Int[np.ndarray, " sequence"]
    start: Int[np.ndarray, " lists"]


def merge_lists(lists: Sequence[Shaped[np.ndarray, " _"]]) -> Merged:
    """One sequence of which every list is a window, short where each list goes on from the one before.

    A list that equals the last window, extends it, or is the same window moved on, adds only what is new;
    any other list is put behind.

    Args:
        lists: The lists, in the order of their rows.
    """
    owners: list[Int[np.ndarray, " new"]] = []
    places: list[Int[np.ndarray, " new"]] = []
    start = np.zeros(len(lists), dtype=np.int64)
    total, window = 0, np.zeros(0, dtype=np.int64)
    for number, entries in enumerate(lists):
        shared = _overlap(window, entries)
        start[number] = total - shared
        if shared < len(entries):
            owners.append(np.full(len(entries) - shared, number, dtype=np.int64))
            places.append(np.arange(shared, len(entries), dtype=np.int64))
            total += len(entries) - shared
        if len(entries):
            window = entries
    nothing = [np.zeros(0, dtype=np.int64)]
    return Merged(np.concatenate(owners or nothing), np.concatenate(places or nothing), start)


def _overlap(window: Shaped[np.ndarray, " window"], entries: Shaped[np.ndarray, " entries"]) -> int:
    """Longest beginning of the entries that a window ends with.

    Only places where the first entry stands can begin it, so few are compared.
    """
    if not len(entries) or not len(window):
        return 0
    tail = window[max(len(window) - len(entries), 0) :]
    for place in np.flatnonzero(tail == entries[0]):
        length = len(tail) - int(place)
        if np.array_equal(tail[place:], entries[:length]):
            return length
    return 0
