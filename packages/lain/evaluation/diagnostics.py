"""Where a trained model looks, by history length, and whether its users pull the same way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from common.metrics.ctr import Bucket, bucket_name
from lain.data.batch import Batches
from lain.layers.attention import AttentionRecord
from lain.model import CTRModel
from lain.ops.spans import Spans


def gini(weight: Float[Tensor, " pairs"], spans: Spans) -> Float[Tensor, " samples"]:
    """Gini coefficient of each sample's weights: 0 for equal weights, towards 1 for one that has all.

    G = sum_i (2 i - n - 1) w_(i) / (n sum w) over the n weights in ascending order, i from 1. Weights
    that are not normalised (DIN's) enter with their absolute value.

    Args:
        weight: Weight of each pair.
        spans: The pairs of each sample.

    Returns:
        The coefficients; 0 for one weight, NaN for none.
    """
    weight = weight.abs()
    by_weight = torch.argsort(weight, stable=True)
    order = by_weight[torch.argsort(spans.row[by_weight], stable=True)]
    rank = 2 * (spans.place + 1) - spans.lengths[spans.row] - 1
    zero = weight.new_zeros(spans.samples)
    moment = zero.index_add(0, spans.row, rank * weight[order])
    return moment / (spans.lengths * zero.index_add(0, spans.row, weight))


def normalised_entropy(weight: Float[Tensor, " pairs"], spans: Spans) -> Float[Tensor, " samples"]:
    """Entropy of each sample's weights over that of equal ones: -sum p log p / log n.

    Args:
        weight: Weight of each pair; absolute values, scaled to sum to 1 per sample.
        spans: The pairs of each sample.

    Returns:
        Between 0 and 1; NaN for fewer than two weights, for which nothing is to be told.
    """
    weight = weight.abs()
    zero = weight.new_zeros(spans.samples)
    p = weight / zero.index_add(0, spans.row, weight)[spans.row]
    entropy = zero.index_add(0, spans.row, -torch.special.xlogy(p, p))
    return torch.where(spans.lengths > 1, entropy / spans.lengths.to(p.dtype).log(), torch.nan)


def attention_shape(record: AttentionRecord) -> dict[str, Float[Tensor, " samples"]]:
    """Gini and entropy over the real behaviours, and the share of all weight that prompts hold.

    Heads are averaged.
    """
    weight, of_prompts, spans = record.weight.double(), record.of_prompts.double().abs(), record.spans
    heads = weight.unbind(1)
    prompts = of_prompts.sum(1)
    total = prompts.index_add(0, spans.row, weight.abs())
    return {
        "gini": torch.stack([gini(w, spans) for w in heads]).mean(0),
        "entropy": torch.stack([normalised_entropy(w, spans) for w in heads]).mean(0),
        "prompt_mass": torch.where(total > 0, prompts / total, 0).mean(1),
    }


def choose_rows(
    length: Int[np.ndarray, " rows"], buckets: Sequence[Bucket], count: int
) -> Int[np.ndarray, " chosen"]:
    """At most ``count`` rows of every bucket, spread evenly over the split, each row once."""
    chosen = []
    for low, high in buckets:
        inside = np.flatnonzero((length >= low) & (length < (np.inf if high is None else high)))
        chosen.append(inside[np.unique(np.linspace(0, len(inside) - 1, min(count, len(inside))).astype(int))])
    return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *chosen]))


@torch.inference_mode()
def attention_by_bucket(
    model: CTRModel, batches: Batches, buckets: Sequence[Bucket], *, rows: int = 500
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean shape of the attention, by branch and bucket of true length.

    Args:
        model: A trained model.
        batches: Rows to look at.
        buckets: Sequence[Bucket] of true length.
        rows: Rows per bucket.

    Returns:
        ``{branch: {bucket: {"gini", "entropy", "prompt_mass", "samples"}}}``; a bucket without rows,
        or a figure that no row of it has, is left out.
    """
    length = np.asarray(batches.split.length)
    chosen = choose_rows(length, buckets, rows)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    collected: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for part in np.array_split(chosen, max(len(chosen) // 512, 1)):
        if len(part):
            for branch, record in model(batches[part].to(device)).attention.items():
                for name, values in attention_shape(record).items():
                    collected[branch][name].append(values.cpu())
    model.train(training)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for branch, figures in collected.items():
        result[branch] = {}
        for low, high in buckets:
            inside = (length[chosen] >= low) & (length[chosen] < (np.inf if high is None else high))
            if not inside.any():
                continue
            mean = {"samples": float(inside.sum())}
            for name, parts in figures.items():
                values = torch.cat(parts).numpy()[inside]
                if np.isfinite(values).any():
                    mean[name] = float(np.nanmean(values))
            result[branch][bucket_name((low, high))] = mean
    return result


def gradient_cosine(
    model: CTRModel, batches: Batches, *, short: int = 100, long: int = 200, rows: int = 2048
) -> dict[str, float]:
    """Cosine between the loss gradients of short and of long users, by part of the model.

    cos = g_short . g_long / (|g_short| |g_long|), each the gradient of the mean loss over at most
    ``rows`` rows. Negative: what helps one hurts the other.

    Args:
        model: A trained model; its weights and gradients are left alone.
        batches: Rows to take.
        short: Users with fewer behaviours are short.
        long: Users with at least so many are long.
        rows: Rows of each kind.

    Returns:
        The cosine for ``all`` parameters and for each top-level part (``items``, ``backbone``, ...); empty
        if one kind of user is missing.
    """
    length = np.asarray(batches.split.length)
    kinds = choose_rows(length, [(0, short)], rows), choose_rows(length, [(long, None)], rows)
    if not all(len(kind) for kind in kinds):
        return {}
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    gradients: list[list[Tensor]] = []
    for kind in kinds:
        batch = batches[kind].to(device)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch).logit, batch.label)
        found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True, materialize_grads=True)
        dense = [g.to_dense() if g.is_sparse else g for g in found]
        gradients.append(dense)
    model.train(training)
    parts: dict[str, list[int]] = defaultdict(list)
    for number, (name, _) in enumerate(named):
        parts[name.split(".")[0]].append(number)
        parts["all"].append(number)
    result = {}
    for part, numbers in parts.items():
        a, b = (torch.cat([g[n].flatten().double() for n in numbers]) for g in gradients)
        norm = a.norm() * b.norm()
        if norm > 0:
            result[part] = float(a @ b / norm)
    return result
