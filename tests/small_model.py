"""Small predictors with every backbone, and batches of hand-written samples for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from lain.backbones import BACKBONES
from lain.backbones.din import Dice
from lain.data.batch import Batch
from lain.data.schema import Feature
from lain.heads import HEADS
from lain.layers.embedding import FeatureEmbedding
from lain.length import LengthOptions
from lain.model import CTRModel
from reference import PADDING, Sample

ITEMS, CATEGORIES, USERS, HOURS = 16, 4, 4, 3
CATEGORY = tuple(item % CATEGORIES for item in range(ITEMS))  # items 4, 8, 12 have no known category
ITEM_FEATURES = {"item_id": tuple(range(ITEMS)), "category": CATEGORY}
FEATURES = (
    Feature("item_id", "item", "categorical", ITEMS),
    Feature("category", "item", "categorical", CATEGORIES),
    Feature("user_id", "user", "categorical", USERS),
    Feature("hour", "context", "categorical", HOURS),
)
DIM = 2
WIDTH = 2 * DIM
SHORT, TOP_K, HASHES, HASH_BITS = 3, 4, 3, 2


def make_model(name: str, options: LengthOptions, *, seed: int = 0, heads: int = 2, **sizes: Any) -> CTRModel:
    """A small model, as it starts."""
    torch.manual_seed(seed)
    taken: dict[str, dict[str, Any]] = {
        "din": {"attention_hidden": (5, 3)},
        "dien": {},
        "sim": {"short_length": SHORT, "top_k": TOP_K, "heads": heads},
        "sdim": {"short_length": SHORT, "hashes": HASHES, "hash_bits": HASH_BITS, "heads": heads},
        "twin": {"short_length": SHORT, "top_k": TOP_K, "heads": heads},
        "eta": {"short_length": SHORT, "top_k": TOP_K, "hash_bits": HASHES * HASH_BITS, "heads": heads},
    }
    return CTRModel(
        features=FEATURES,
        embedding=partial(FeatureEmbedding, dim=DIM),
        backbone=BACKBONES.component(name, **taken[name] | sizes).build,
        head=HEADS.component("mlp", hidden=(6, 5)).build,
        length=options,
    ).double()


def stir(model: CTRModel, seed: int = 0) -> CTRModel:
    """Give every weight a random value, also those that start at zero, and Dice a past."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 0.5)
            if name.endswith(("item_id.weight", "category.weight", "hour.weight", "action.weight")):
                weight[PADDING] = 0
        for module in model.modules():
            if isinstance(module, Dice):
                mean, variance = module.norm.running_mean, module.norm.running_var
                assert mean is not None
                assert variance is not None
                mean.copy_(torch.randn(mean.shape, generator=generator) * 0.3)
                variance.copy_(torch.rand(variance.shape, generator=generator) + 0.5)
    return model


def make_batch(samples: Sequence[Sample], *, shared: bool = False, repeated: bool = False) -> Batch:
    """The batch of these samples.

    Args:
        samples: The samples.
        shared: Samples whose histories are the same stretch, or part of one, share it in the pool.
        repeated: Every mention of an item is an item of its own, as if no two were the same.
    """
    stretches: list[tuple[int, ...]] = []
    where = []
    for sample in samples:
        for number, stretch in enumerate(stretches if shared else []):
            count = len(sample.history)
            begins = [b for b in range(len(stretch)) if stretch[b : b + count] == sample.history]
            if begins:
                where.append((number, begins[0]))
                break
        else:
            where.append((len(stretches), 0))
            stretches.append(sample.history)
    pool = [item for stretch in stretches for item in stretch]
    places = [sum(len(s) for s in stretches[:number]) + begin for number, begin in where]
    targets = [sample.target for sample in samples]
    items = [*pool, *targets] if repeated else sorted({*pool, *targets})
    rows = list(range(len(items))) if repeated else [items.index(item) for item in [*pool, *targets]]
    whole = partial(torch.tensor, dtype=torch.long)
    return Batch(
        items=whole(items),
        pool=whole(rows[: len(pool)]),
        start=whole(places),
        count=whole([len(sample.history) for sample in samples]),
        target=whole(rows[len(pool) :]),
        length=whole([sample.length for sample in samples]),
        label=torch.tensor([float(sample.target % 2) for sample in samples]),
        rows=torch.arange(len(samples)),
        item_features={"category": whole([CATEGORY[item] for item in items])},
        features={name: whole([s.context[name] for s in samples]) for name in ("user_id", "hour")},
    )


SAMPLES = (
    Sample((), 3, 0, {"user_id": 1, "hour": 0}),
    Sample((5,), 5, 1, {"user_id": 2, "hour": 1}),
    Sample((1, 2, 1, 9, 7), 7, 5, {"user_id": 3, "hour": 2}),
    Sample((4, 4, 4, 4, 4, 4), 9, 60, {"user_id": 0, "hour": 1}),
    Sample((11, 3, 9, 5, 1, 8, 12, 15, 2), 8, 130, {"user_id": 1, "hour": 2}),
    Sample((2, 1, 9, 7, 15, 10, 6), 14, 900, {"user_id": 3, "hour": 0}),
)
"""Ragged: none, one, under and over ``SHORT`` and ``TOP_K``; truncated and not; repeated items."""
