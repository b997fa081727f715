"""The embedded world: who is in it, what the rows are, and that the same seed is the same world."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.metrics import roc_auc_score

from common.errors import ConfigError, DataError
from common.ragged import Ragged
from lain.data.store import Store
from lain.world import WorldConfig, make_world

BUCKETS = ((0, 50), (50, 100), (100, 200), (200, 1001))
TINY = WorldConfig().for_users(60)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(make_world(WorldConfig(), tmp_path_factory.mktemp("world") / "store"))


def share_of_rows_below(limit: float, config: WorldConfig) -> float:
    """Expected share of rows of users with shorter histories, by integration over the log-normal."""
    law = stats.lognorm(config.length_sigma, scale=config.length_median)
    low, high = config.length_min, config.length_max

    def mass(a: float, b: float) -> float:
        return float(integrate.quad(lambda x: x**config.imbalance * law.pdf(x), a, b)[0])

    floor = low**config.imbalance * law.cdf(low)
    top = high**config.imbalance * law.sf(high)
    return float((floor + mass(low, limit)) / (floor + mass(low, high) + top))


def test_short_users_are_many_and_give_few_rows(world: Store) -> None:
    config = WorldConfig()
    length = world.histories.lengths
    expected = float(stats.lognorm(config.length_sigma, scale=config.length_median).cdf(100))
    assert expected == pytest.approx(0.57, abs=0.005)
    error = np.sqrt(expected * (1 - expected) / config.users)
    assert np.mean(length < 100) == pytest.approx(expected, abs=4 * error)

    expected = share_of_rows_below(100, config)
    assert expected == pytest.approx(0.14, abs=0.01)
    # The error of the ratio: users are drawn, then rows among them.
    weight = length**config.imbalance
    short = weight * ((length < 100) - expected)
    users_error = np.sqrt(np.sum(short**2)) / weight.sum()
    rows_error = np.sqrt(expected * (1 - expected) / config.rows)
    found = np.mean(world.split("train").length < 100)
    assert found == pytest.approx(expected, abs=4 * np.hypot(users_error, rows_error))


def test_rows_are_as_asked(world: Store) -> None:
    config = WorldConfig()
    assert world.splits == {"train": config.rows, "valid": config.valid_rows, "test": 32_000}
    length = np.asarray(world.split("test").length)
    for low, high in BUCKETS:
        assert np.sum((length >= low) & (length < high)) == config.test_per_bucket
    assert [f.name for f in world.features] == ["item_id", "category"]
    assert world.num_items == 601
    category = world.items["category"]
    assert category[0] == 0
    assert np.bincount(category[1:]).tolist() == [0, *[10] * 60]
    for name in world.splits:
        split = world.split(name)
        stored = world.histories.lengths[split.user]
        np.testing.assert_array_equal(split.end, stored)
        np.testing.assert_array_equal(split.length, stored)
        assert split.item.min() >= 1
    assert world.histories.values.min() >= 1
    assert world.histories.lengths.min() >= config.length_min
    assert world.histories.lengths.max() <= config.length_max


def test_labels_follow_the_true_probability(world: Store) -> None:
    for name in world.splits:
        split = world.split(name)
        assert split.probability is not None
        probability = np.asarray(split.probability, dtype=np.float64)
        assert 0 < probability.min() <= probability.max() < 1
        for low in np.arange(0.0, 1.0, 0.2):
            inside = (probability >= low) & (probability < low + 0.2)
            error = np.sqrt(np.sum(probability[inside] * (1 - probability[inside])))
            assert abs(split.label[inside].sum() - probability[inside].sum()) < 4.5 * error


def test_the_best_possible_auc_rises_with_length_as_in_the_recipe(world: Store) -> None:
    """About .79, .80 and .815 below 100, below 200 and above (true probability as soft label)."""
    test = world.split("test")
    length, probability = np.asarray(test.length), np.asarray(test.probability, dtype=np.float64)
    for low, high, expected in ((0, 100, 0.79), (100, 200, 0.80), (200, 1001, 0.815)):
        p = probability[(length >= low) & (length < high)]
        auc = roc_auc_score(
            np.repeat([1, 0], len(p)), np.tile(p, 2), sample_weight=np.concatenate((p, 1 - p))
        )
        assert auc == pytest.approx(expected, abs=0.01)


def logits_of(store: Store, chosen: np.ndarray) -> set[float]:
    probability = store.split("train").probability
    assert probability is not None
    p = np.asarray(probability[chosen], dtype=np.float64)
    return set(np.round(np.log(p / (1 - p)), 4).tolist())


def test_long_users_click_by_topic_and_short_ones_by_group(tmp_path: Path) -> None:
    """Without quality and noise every logit is bias, bias + group, or bias + group + topic effect."""
    config = replace(WorldConfig().for_users(300), quality_std=0.0, noise=0.0)
    store = Store.open(make_world(config, tmp_path / "plain"))
    train = store.split("train")
    length = np.asarray(train.length)
    assert logits_of(store, length <= 50) == {-1.2, 0.8, 1.3}
    assert logits_of(store, length >= 400) == {-1.2, -0.9, 1.6}
    share = np.log(length / 50) / np.log(8)  # of the way from 50 to 400
    row = int(np.argmin(np.abs(share - 0.5)))
    topic, group = 0.5 + 2 * share[row], 2 - 1.7 * share[row]
    found = np.array(sorted(logits_of(store, length == length[row])))
    np.testing.assert_allclose(found, [-1.2, -1.2 + group, -1.2 + group + topic], atol=1e-4)

    category = store.items["category"]
    for row in range(0, len(train), 10):
        if category[train.item[row]] in category[store.histories[int(train.user[row])]]:
            both = 2.5 if length[row] <= 50 else 2.8 if length[row] >= 400 else None
            if both is not None:
                assert logits_of(store, np.array([row])) == {round(both - 1.2, 4)}


def category_shift(store: Store, histories: Ragged) -> float:
    """Mean distance between the category shares of the older and the newer half of long histories."""
    distances = []
    for user in np.flatnonzero(histories.lengths >= 300).tolist():
        category = store.items["category"][histories[user]]
        half = len(category) // 2
        old, new = (
            np.bincount(part, minlength=61) / len(part) for part in (category[:half], category[half:])
        )
        distances.append(np.abs(old - new).sum() / 2)
    return float(np.mean(distances))


def test_interests_drift_and_need_not(tmp_path: Path) -> None:
    config = WorldConfig().for_users(600)
    stores = [
        Store.open(make_world(replace(config, drift=drift), tmp_path / str(drift)))
        for drift in (0.0, 1.0, 4.0)
    ]
    shifts = [category_shift(store, store.histories) for store in stores]
    assert shifts[0] < shifts[1] < shifts[2]
    # Without drift the halves differ by chance alone, as do the halves of a shuffled history.
    rng = np.random.default_rng(0)
    by_chance = [
        category_shift(
            stores[0], Ragged.from_lists([rng.permutation(h).tolist() for h in rows_of(stores[0])])
        )
        for _ in range(5)
    ]
    assert abs(shifts[0] - np.mean(by_chance)) < 4 * np.std(by_chance, ddof=1) * np.sqrt(1 + 1 / 5)


def rows_of(store: Store) -> list[np.ndarray]:
    return [store.histories[user] for user in range(store.num_users)]


def test_drift_changes_behaviours_only(tmp_path: Path) -> None:
    stores = [
        Store.open(make_world(replace(TINY, drift=drift), tmp_path / str(drift))) for drift in (0.0, 1.0)
    ]
    for name in stores[0].splits:
        first, second = (store.split(name) for store in stores)
        np.testing.assert_array_equal(first.item, second.item)
        np.testing.assert_array_equal(first.label, second.label)
    assert not np.array_equal(stores[0].histories.values, stores[1].histories.values)


def files_of(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def test_the_same_seed_is_the_same_world(tmp_path: Path) -> None:
    first = files_of(make_world(TINY, tmp_path / "a"))
    assert files_of(make_world(TINY, tmp_path / "b")) == first
    other = files_of(make_world(replace(TINY, seed=1), tmp_path / "c"))
    assert other["train/label.npy"] != first["train/label.npy"]


def test_the_world_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """Written down once; NumPy keeps the streams of its generators, so it holds wherever this runs."""
    path = make_world(TINY, tmp_path / "a")
    digest = hashlib.sha256()
    for name in ("histories.values.npy", "train/item.npy", "train/probability.npy", "test/label.npy"):
        digest.update(np.ascontiguousarray(np.load(path / name)).tobytes())
    assert digest.hexdigest()[:16] == "680ee133f3ebf1e7"


def test_another_number_of_users_scales_the_rows() -> None:
    config = WorldConfig(seed=3).for_users(300)
    assert (config.users, config.rows, config.valid_rows, config.test_per_bucket) == (300, 6000, 800, 800)
    assert config.seed == 3


def test_a_few_users_make_a_world_without_the_buckets_nobody_is_in(tmp_path: Path) -> None:
    store = Store.open(make_world(WorldConfig().for_users(1), tmp_path / "one"))
    assert store.num_users == 1
    assert store.splits == {"train": 20, "valid": 3, "test": 3}


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"users": 0}, "users: must be at least 1, got 0"),
        ({"noise": 1.5}, "noise: must be at most 1, got 1.5"),
        ({"drift": -1.0}, "drift: must be at least 0"),
        ({"items": 59}, "items: must be at least one per topic"),
        ({"topics_max": 61}, "topics_max: must be"),
        ({"length_max": 4}, "length_max: must not be less"),
        ({"target_group": 0.7}, "target_topic: together"),
        ({"bucket_edges": (100, 50)}, "bucket_edges: must rise"),
        ({"effect_lengths": (400, 50)}, "effect_lengths: must rise"),
        ({"length_median": float("nan")}, "length_median: expected a number, got nan"),
    ],
)
def test_impossible_worlds_are_refused(changed: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        WorldConfig(**changed)


def test_two_mistakes_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        WorldConfig(users=0, noise=2.0)
    assert len(caught.value.messages) == 2


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        make_world(TINY, tmp_path / "file" / "world")
