"""The method's equations for every backbone whose attention is a softmax."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lain.length.adapter import LengthState
from lain.ops.products import span_dot
from lain.ops.spans import Spans


def conditioned_logits(
    length: LengthState,
    branch: str,
    *,
    query: Float[Tensor, "samples attention"],
    keys: Float[Tensor, "rows attention"],
    spans: Spans,
    prompt_keys: Float[Tensor, "samples prompts attention"],
    heads: int = 1,
    scale: float = 1.0,
    divide: Literal["query", "logits"] = "query",
) -> tuple[Float[Tensor, "pairs heads"], Float[Tensor, "samples prompts heads"]]:
    """Logits of behaviours and prompts, as the length has them.

    For behaviour p of sample i, head by head, with Q = W_q1 target and K = W_k1 item::

        logit_p = Q'_i . K'_p / (scale tau_i)        Q' = W_q [Q; e],  K' = W_k [K; e] = K + W_k2 e
        prompt  = (Q^_i . K'_prompt / scale + offset) / tau_i

    where Q^ is Q or Q' (``prompt_query``). With every part off this is Q . K / scale. Source: LAIN
    (arXiv 2601.19142), length-modulated attention; the plain query for prompts and the offset are not in the
    paper.

    Args:
        length: The batch's lengths.
        branch: The branch whose attention it is.
        query: Projected targets Q.
        keys: Projected items K, each once.
        spans: Each sample's behaviours as rows of the keys.
        prompt_keys: Projected prompts of each sample; no prompts, no logits.
        heads: Into how many heads queries and keys are cut.
        scale: What logits are divided by besides tau, the root of a head's width.
        divide: What is divided by tau: the queries, or the logits. Equal but for rounding; the logits of one
            head are fewer numbers than the queries, those of several are more.

    Returns:
        The logits of the pairs, and those of the prompts.
    """

    def split(x: Float[Tensor, "*n attention"]) -> Float[Tensor, "*n heads dim"]:
        return torch.unflatten(x, -1, (heads, -1))

    plain, changed = query, length.query(branch, query)
    shift, tau = length.key_shift(branch), length.temperature(branch)
    if tau is not None and divide == "query":
        plain, changed = plain / tau[:, None], changed / tau[:, None]
    logits = span_dot(split(changed), split(keys), spans)
    prompts = split(prompt_keys)
    if shift is not None:
        of_shift = (split(changed) * split(shift)).sum(-1)
        logits = logits + of_shift.index_select(0, spans.row)
        prompts = prompts + split(shift)[:, None]
    of_prompts = split(plain if length.plain_prompt_query else changed)
    prompt_logits = (prompts * of_prompts[:, None]).sum(-1).to(logits.dtype)
    if scale != 1:
        logits, prompt_logits = logits / scale, prompt_logits / scale
    offset = length.prompt_offset
    if offset is not None:
        offset = offset if tau is None or divide == "logits" else (offset / tau)[:, None, None]
        prompt_logits = prompt_logits + offset
    if tau is not None and divide == "logits":
        logits, prompt_logits = (
            logits / tau.index_select(0, spans.row)[:, None],
            prompt_logits / tau[:, None, None],
        )
    return logits, prompt_logits
