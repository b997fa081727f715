"""The retrieval losses written a second time: one query after the other, from the equations alone."""

from __future__ import annotations

import torch
from torch import Tensor


def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    negative_row: Tensor,
    temperature: float,
    in_batch: str = "",
    *,
    positive_id: Tensor | None = None,
    negative_id: Tensor | None = None,
    known: set[tuple[int, int]] | None = None,
) -> Tensor:
    """Mean over queries of -log softmax of the positive.

    ``in_batch`` is empty, ``"positives"`` or ``"documents"``; ``known`` holds (query, document number).
    """
    losses = []
    rows = negative_row.tolist()
    for b in range(len(query)):

        def answers(number: Tensor, b: int = b) -> bool:
            assert positive_id is not None
            return int(number) == int(positive_id[b]) or (b, int(number)) in (known or set())

        candidates = [positive[b]]
        for other in range(len(query)) if in_batch else ():
            if other != b and not (positive_id is not None and answers(positive_id[other])):
                candidates.append(positive[other])
        for j, row in enumerate(rows):
            if (row == b or in_batch == "documents") and not (
                negative_id is not None and answers(negative_id[j])
            ):
                candidates.append(negatives[j])
        logits = torch.stack([torch.dot(query[b], candidate) for candidate in candidates]) / temperature
        losses.append(-torch.log_softmax(logits, 0)[0])
    return torch.stack(losses).mean()


def query_view_entropy(
    query: Tensor,
    negatives: Tensor,
    negative_row: Tensor,
    generated: Tensor,
    temperature: float = 0.1,
    *,
    scope: str = "own",
) -> Tensor:
    """-H of the generated negatives' renormalised shares, plus the squared excess of their joint share."""
    losses = []
    for b in range(len(query)):
        mine = negative_row == b
        if not bool((mine & generated).any()):
            continue
        if scope == "batch":
            mine = torch.ones_like(mine)
        written, mined = negatives[mine & generated], negatives[mine & ~generated]
        similarity = torch.cat([mined.detach(), written]) @ query[b].detach()
        of_written = torch.softmax(similarity / temperature, 0)[len(mined) :]
        shares = of_written / of_written.sum()
        entropy = -(shares * torch.log(shares)).sum()
        balance = (of_written.sum() - len(written) / (len(mined) + len(written))) ** 2
        losses.append(balance - entropy)
    return torch.stack(losses).mean() if losses else negatives.sum() * 0


def distribution_matching(
    query: Tensor, negatives: Tensor, negative_row: Tensor, generated: Tensor, *, distance: str
) -> Tensor:
    """The distance between the two sources' similarities, collected query by query; gradient to all."""
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for b in range(len(query)):
        mine = negative_row == b
        ours.append(negatives[mine & generated] @ query[b])
        theirs.append(negatives[mine & ~generated] @ query[b])
    a, b_ = torch.cat(ours), torch.cat(theirs)
    if not len(a) or not len(b_):
        return negatives.sum() * 0
    if distance == "energy":
        apart = [(x[:, None] - y[None]).abs().mean() for x, y in ((a, b_), (a, a), (b_, b_))]
        return 2 * apart[0] - apart[1] - apart[2]
    # Everyone copied until both samples have len(a) * len(b) members, then paired in order.
    apart_ = a.sort().values.repeat_interleave(len(b_)) - b_.sort().values.repeat_interleave(len(a))
    return apart_.abs().mean() if distance == "wasserstein" else (apart_**2).mean()
