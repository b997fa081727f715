"""The embedded world: simulated users whose true click probability is known.

It is built so that two things pull against each other, as on real platforms: users with long histories
click by fine topics, users with short ones by coarse groups, and the long users give most of the rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float, Int

from common.config import Positive, Share, checked
from common.errors import ConfigError
from common.ragged import Ragged
from lain.data.schema import Feature
from lain.data.writer import StoreWriter

_USERS_AT_ONCE = 512


@checked
@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Every constant of the world.

    Args:
        users: Number of users.
        items: Number of items, without the padding item; at least one per topic.
        rows: Training rows, drawn over users in proportion to ``length ** imbalance``.
        valid_rows: Validation rows, drawn like the training rows.
        test_per_bucket: Test rows of each length bucket, drawn within the bucket in the same proportion.
        bucket_edges: Where the length buckets of the test rows end; the last bucket is open.
        seed: Of all draws.
        length_median: Median of the log-normal history length, in behaviours.
        length_sigma: Standard deviation of the log of the length.
        length_min: Shortest history.
        length_max: Longest history.
        imbalance: Exponent of the length in a user's share of the rows. With 1.1 the users below 100
            behaviours give 14 % of the rows, with 1.15 13 %, with 1 17 %.
        groups: Hidden groups of topics. No feature shows them.
        topics_per_group: Topics in each group; the topic is the visible category of an item.
        popularity_shape: Shape of the gamma distribution of an item's popularity.
        popularity_floor: Added to every popularity.
        quality_std: Standard deviation of an item's quality, on the logit of a click.
        topics_min: Topics a user holds with no history at all.
        behaviours_per_topic: Behaviours that come with one more held topic.
        topics_max: Most topics a user holds.
        same_group: Chance that a new topic comes from a group in which the user holds one already.
        noise: Share of behaviours on any item, uniformly, whatever the user likes.
        drift: How far a user's interests move. Each held topic has its time, uniform over the user's
            history; at relative time t the topic with time u weighs ``exp(-drift * |t - u|)`` times its
            constant weight. 0: interests are constant; 1: a topic weighs at most e times more at its
            time than at the far end. A topic stays held, and liked, for good.
        target_topic: Share of targets from a topic that the user holds.
        target_group: Share of targets from a group in which the user holds a topic; the rest is uniform.
        bias: Logit of a click on an item of quality 0 that the user does not care for.
        topic_effect: What a held topic adds to the logit, at short and at long histories.
        group_effect: What a group with a held topic adds, at short and at long histories.
        effect_lengths: The lengths that count as short and long; linear in the log between, flat outside.

    Raises:
        ConfigError: Values that make no world; all of them are named.
    """

    users: Positive = 3_000
    items: int = 600
    rows: Positive = 60_000
    valid_rows: Positive = 8_000
    test_per_bucket: Positive = 8_000
    bucket_edges: tuple[int, ...] = (50, 100, 200)
    seed: Annotated[int, Ge(0)] = 0
    length_median: Annotated[float, Gt(0)] = 81.0
    length_sigma: Annotated[float, Ge(0)] = 1.2
    length_min: Positive = 5
    length_max: int = 1_000
    imbalance: Annotated[float, Ge(0)] = 1.1
    groups: Positive = 12
    topics_per_group: Positive = 5
    popularity_shape: Annotated[float, Gt(0)] = 0.7
    popularity_floor: Annotated[float, Gt(0)] = 0.05
    quality_std: Annotated[float, Ge(0)] = 0.4
    topics_min: Positive = 2
    behaviours_per_topic: Positive = 50
    topics_max: int = 40
    same_group: Share = 0.5
    noise: Share = 0.15
    drift: Annotated[float, Ge(0)] = 1.0
    target_topic: Share = 0.35
    target_group: Share = 0.25
    bias: float = -1.2
    topic_effect: tuple[float, float] = (0.5, 2.5)
    group_effect: tuple[float, float] = (2.0, 0.3)
    effect_lengths: tuple[int, int] = (50, 400)

    def __post_init__(self) -> None:
        """Refuse what no single range refuses."""
        found = []
        if self.length_max < self.length_min:
            found.append(
                f"length_max: must not be less than length_min ({self.length_min}), got {self.length_max}"
            )
        if self.items < self.topics:
            found.append(f"items: must be at least one per topic ({self.topics}), got {self.items}")
        if not self.topics_min <= self.topics_max <= self.topics:
            found.append(
                f"topics_max: must be from topics_min ({self.topics_min}) to the number of topics "
                f"({self.topics}), got {self.topics_max}"
            )
        if self.target_topic + self.target_group > 1:
            total = self.target_topic + self.target_group
            found.append(f"target_topic: together with target_group it must not exceed 1, got {total}")
        edges = (0, *self.bucket_edges)
        if any(low >= high for low, high in pairwise(edges)):
            found.append(f"bucket_edges: must rise and be positive, got {list(self.bucket_edges)}")
        if not 0 < self.effect_lengths[0] < self.effect_lengths[1]:
            found.append(f"effect_lengths: must rise and be positive, got {list(self.effect_lengths)}")
        ConfigError.raise_if(found)

    @property
    def topics(self) -> int:
        """Number of topics."""
        return self.groups * self.topics_per_group

    def for_users(self, users: int) -> WorldConfig:
        """The same world with more or fewer users, and rows in proportion."""
        if users < 1:
            raise ConfigError(f"users: must be at least 1, got {users}")

        def scaled(rows: int) -> int:
            return max(1, round(rows * users / self.users))

        return replace(
            self,
            users=users,
            rows=scaled(self.rows),
            valid_rows=scaled(self.valid_rows),
            test_per_bucket=scaled(self.test_per_bucket),
        )


@dataclass(frozen=True, eq=False)
class _Items:
    """The items, without the padding item, grouped by topic: topic ``k`` has ``first[k] : first[k + 1]``."""

    topic: Int[np.ndarray, " items"]
    first: Int[np.ndarray, " topics_plus_one"]
    popularity: Float[np.ndarray, " items"]
    quality: Float[np.ndarray, " items"]


@dataclass(frozen=True, eq=False)
class _Users:
    """The users: how long their histories are, and which topics they hold since when and how much."""

    length: Int[np.ndarray, " users"]
    held: Bool[np.ndarray, "users topics"]
    group_held: Bool[np.ndarray, "users groups"]
    weight: Float[np.ndarray, "users topics"]
    time: Float[np.ndarray, "users topics"]


class _Rows(TypedDict):
    """Rows of a split, as :meth:`lain.data.store.SplitWriter.append` takes them."""

    user: Int[np.ndarray, " rows"]
    item: Int[np.ndarray, " rows"]
    end: Int[np.ndarray, " rows"]
    length: Int[np.ndarray, " rows"]
    label: Int[np.ndarray, " rows"]
    probability: Float[np.ndarray, " rows"]


def _draw_items(config: WorldConfig, rng: np.random.Generator) -> _Items:
    topic = np.arange(config.items) * config.topics // config.items
    return _Items(
        topic=topic,
        first=np.searchsorted(topic, np.arange(config.topics + 1)),
        popularity=rng.gamma(config.popularity_shape, size=config.items) + config.popularity_floor,
        quality=rng.normal(0.0, config.quality_std, size=config.items),
    )


def _groups_of(held: Bool[np.ndarray, "users topics"], groups: int) -> Bool[np.ndarray, "users groups"]:
    """In which groups a topic is held."""
    return np.asarray(held.reshape(len(held), groups, -1).any(axis=2))


def _draw_users(config: WorldConfig, rng: np.random.Generator) -> _Users:
    drawn = rng.lognormal(np.log(config.length_median), config.length_sigma, size=config.users)
    length = np.clip(drawn, config.length_min, config.length_max).astype(np.int64)
    count = np.minimum(config.topics_min + length // config.behaviours_per_topic, config.topics_max)
    held = np.zeros((config.users, config.topics), dtype=bool)
    for step in range(int(count.max())):
        owners = np.flatnonzero(count > step)
        free = ~held[owners]
        near = free & np.repeat(_groups_of(held[owners], config.groups), config.topics_per_group, axis=1)
        stay = (rng.random(len(owners)) < config.same_group) & near.any(axis=1)
        allowed = np.where(stay[:, None], near, free)
        new = np.argmax(np.where(allowed, rng.random(allowed.shape), -1.0), axis=1)
        held[owners, new] = True
    weight = np.where(held, rng.exponential(size=held.shape), 0.0)  # Dirichlet(1), not yet normalised
    return _Users(
        length=length,
        held=held,
        group_held=_groups_of(held, config.groups),
        weight=weight,
        time=rng.random(held.shape),
    )


def _choose(
    weights: Float[np.ndarray, "draws choices"], uniform: Float[np.ndarray, " draws"]
) -> Int[np.ndarray, " draws"]:
    """One choice per line, in proportion to its weights."""
    total = np.cumsum(weights, axis=1)
    above = total > (uniform * total[:, -1])[:, None]
    return np.asarray(np.argmax(above, axis=1))


def _item_by_popularity(
    items: _Items, topic: Int[np.ndarray, " draws"], uniform: Float[np.ndarray, " draws"]
) -> Int[np.ndarray, " draws"]:
    """An item of each topic, in proportion to popularity."""
    total = np.concatenate(([0.0], np.cumsum(items.popularity)))
    low, high = total[items.first[topic]], total[items.first[topic + 1]]
    found = np.searchsorted(total, low + uniform * (high - low), side="right") - 1
    return np.asarray(np.clip(found, items.first[topic], items.first[topic + 1] - 1))


def _draw_histories(
    config: WorldConfig, items: _Items, users: _Users, rng: np.random.Generator
) -> Int[np.ndarray, " behaviours"]:
    """All users' behaviours in order, one user after the other, as item indices counted from 1."""
    parts = []
    for first in range(0, config.users, _USERS_AT_ONCE):
        some = np.arange(first, min(first + _USERS_AT_ONCE, config.users))
        length = users.length[some]
        owner = np.repeat(some, length)
        ends = np.cumsum(length)
        position = np.arange(ends[-1]) - np.repeat(ends - length, length)
        when = (position + 0.5) / users.length[owner]
        uniform = rng.random((3, len(owner)))
        weight = users.weight[owner]
        if config.drift:
            weight = weight * np.exp(-config.drift * np.abs(when[:, None] - users.time[owner]))
        liked = _item_by_popularity(items, _choose(weight, uniform[0]), uniform[1])
        anything = rng.integers(config.items, size=len(owner))
        parts.append(np.where(uniform[2] < config.noise, anything, liked) + 1)
    return np.concatenate(parts)


def _effect(config: WorldConfig, pair: tuple[float, float], length: Int[np.ndarray, " rows"]) -> np.ndarray:
    low, high = np.log(config.effect_lengths)
    share = np.clip((np.log(length) - low) / (high - low), 0.0, 1.0)
    return np.asarray(pair[0] + (pair[1] - pair[0]) * share)


def _draw_rows(
    config: WorldConfig,
    items: _Items,
    users: _Users,
    chance: Float[np.ndarray, " users"],
    rows: int,
    rng: np.random.Generator,
) -> _Rows:
    """Rows of one split, each user in proportion to its chance."""
    total = np.cumsum(chance)
    user = np.searchsorted(total, rng.random(rows) * total[-1], side="right")
    kind, uniform = rng.random(rows), rng.random((2, rows))
    held = users.held[user]
    near = np.repeat(users.group_held[user], config.topics_per_group, axis=1)
    allowed = np.where(
        (kind < config.target_topic)[:, None],
        held,
        near | (kind >= config.target_topic + config.target_group)[:, None],
    )
    topic = _choose(allowed.astype(np.float64), uniform[0])
    size = items.first[topic + 1] - items.first[topic]
    item = items.first[topic] + np.floor(uniform[1] * size).astype(np.int64)
    length = users.length[user]
    logit = (
        config.bias
        + _effect(config, config.topic_effect, length) * held[np.arange(rows), topic]
        + _effect(config, config.group_effect, length) * near[np.arange(rows), topic]
        + items.quality[item]
    )
    # six digits: what the last bit of exp is on this machine no longer shows
    probability = np.round(1.0 / (1.0 + np.exp(-logit)), 6)
    return {
        "user": user,
        "item": item + 1,
        "end": length,
        "length": length,
        "label": (rng.random(rows) < probability).astype(np.int64),
        "probability": probability.astype(np.float32),
    }


def _draw_test(
    config: WorldConfig,
    items: _Items,
    users: _Users,
    chance: Float[np.ndarray, " users"],
    rng: np.random.Generator,
) -> list[_Rows]:
    """The test rows, bucket by bucket; a bucket without users has no rows."""
    edges = (0, *config.bucket_edges, np.inf)
    parts = []
    for low, high in pairwise(edges):
        inside = (users.length >= low) & (users.length < high)
        if inside.any():
            parts.append(_draw_rows(config, items, users, chance * inside, config.test_per_bucket, rng))
    return parts


def make_world(config: WorldConfig, out: Path) -> Path:
    r"""Simulate users, their histories and their clicks, and write them as a store.

    A row's click probability is
    :math:`\sigma(b + a_f(L)\,[\text{topic held}] + a_c(L)\,[\text{group held}] + q_{item})`, where the
    effect of the fine topic :math:`a_f` grows and that of the coarse group :math:`a_c` falls with the
    length :math:`L` of the user's history. Targets are drawn after the whole history, so every row's
    history is the user's whole sequence and its true length is the length of that.

    The same configuration gives the same bytes, whatever the machine.

    Args:
        config: All constants.
        out: The store's folder; a store already there is replaced.

    Returns:
        ``out``.

    Raises:
        DataError: The folder cannot be written.
    """
    seeds = np.random.SeedSequence(config.seed).spawn(6)
    streams = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
    items = _draw_items(config, streams[0])
    users = _draw_users(config, streams[1])
    behaviours = _draw_histories(config, items, users, streams[2])
    chance = users.length.astype(np.float64) ** config.imbalance
    splits = {
        "train": [_draw_rows(config, items, users, chance, config.rows, streams[3])],
        "valid": [_draw_rows(config, items, users, chance, config.valid_rows, streams[4])],
        "test": _draw_test(config, items, users, chance, streams[5]),
    }
    notes: dict[str, Any] = {"made by": "lain world", "config": asdict(config)}
    features = [
        Feature("item_id", "item", "categorical", config.items + 1),
        Feature("category", "item", "categorical", config.topics + 1),
    ]
    writer = StoreWriter(
        out, name="world", features=features, num_items=config.items + 1, num_users=config.users, notes=notes
    )
    with writer as store:
        store.items("category", np.concatenate(([0], items.topic + 1)))
        offsets = np.concatenate(([0], np.cumsum(users.length)))
        store.histories(Ragged(behaviours, offsets))
        for name, parts in splits.items():
            split = store.split(name, sum(len(part["user"]) for part in parts))
            for part in parts:
                split.append(**part)
    return out
