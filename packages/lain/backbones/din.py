"""DIN: a small network weighs every behaviour against the target; the weights are not normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.config import Positive, checked
from lain.backbones.base import Backbone, Contexts, Interests, Memory, Table, Targets
from lain.layers.attention import AttentionRecord
from lain.length import LengthState
from lain.ops.linear import span_linear
from lain.ops.products import span_sum
from lain.ops.spans import Spans


class Dice(nn.Module):
    """Data-adaptive activation: y = (p + a (1 - p)) x, p = sigmoid(batch-normalised x), a learned per unit.

    Source: Zhou et al., DIN, KDD 2018, eq. 5. The statistics are of real behaviours alone, since
    there is no padding to count.

    Args:
        units: Number of units.
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(units, eps=1e-8, affine=False)
        self.slope = nn.Parameter(torch.zeros(units))

    def forward(self, x: Float[Tensor, "n units"]) -> Float[Tensor, "n units"]:
        """The activation; fewer than two rows are not enough for statistics and use the running ones."""
        if self.training and len(x) < 2:
            mean, var = self.norm.running_mean, self.norm.running_var
            p = torch.sigmoid(nn.functional.batch_norm(x, mean, var, eps=self.norm.eps))
        else:
            p = torch.sigmoid(self.norm(x))
        return (self.slope + p * (1 - self.slope)) * x


@checked
class DIN(Backbone):
    """Deep interest network.

    interest = sum_p a(target, item_p) item_p, with a = network([q, k, q - k, q * k]), no softmax.
    Source: Zhou et al., DIN, KDD 2018; input order as in FuxiCTR. The first layer is split:
    W [q; k; q - k; q * k] = (W_q + W_d) q + (W_k - W_d) k + W_p (q * k), so that the first two terms are
    computed once per sample and once per item.

    Weights of prompts are multiplied by the exponential of the prompts' offset, if there is one. The
    length modulates q and k before the network (W_q1 is the identity) and divides a by tau; since the
    weights are not normalised, the keys' half acts here.

    Args:
        width: Width d of an item's vector.
        attention_hidden: Widths of the scoring network's hidden layers.
        attention_activation: Their activation; ``dice`` is the paper's.

    Raises:
        ValueError: A width is not positive, or there is no hidden layer.
    """

    def __init__(
        self,
        *,
        width: Positive,
        attention_hidden: Sequence[Positive] = (64,),
        attention_activation: Literal["dice", "relu"] = "dice",
    ) -> None:
        super().__init__()
        if not attention_hidden:
            raise ValueError("attention_hidden must name at least one width, got none")
        self.width = width
        activation = Dice if attention_activation == "dice" else lambda units: nn.ReLU()
        first, *rest = attention_hidden
        self.of_query = nn.Linear(width, first)
        self.of_key = nn.Linear(width, first, bias=False)
        self.of_difference = nn.Linear(width, first, bias=False)
        self.of_product = nn.Linear(width, first, bias=False)
        layers: list[nn.Module] = [activation(first)]
        for before, after in zip(attention_hidden, rest, strict=False):
            layers += [nn.Linear(before, after), activation(after)]
        self.network = nn.Sequential(*layers, nn.Linear(attention_hidden[-1], 1))

    @property
    def branches(self) -> dict[str, int]:
        """One branch over the whole history."""
        return {"long": self.width}

    @property
    def interest_width(self) -> int:
        """One interest vector."""
        return self.width

    def encode(self, table: Table, spans: Spans, length: LengthState) -> Memory:
        """The items: what the network makes of one depends on the target, or is too wide to keep."""
        return Memory(spans, {"item": table})

    def score(self, memory: Memory, target: Targets, context: Contexts, length: LengthState) -> Interests:
        """The weighted sum of behaviours and prompts."""
        spans, table = memory.spans, memory.rows["item"]
        query, shift = length.query("long", target), length.key_shift("long")
        of_key = self.of_key.weight - self.of_difference.weight
        of_query = plain = self._of_query(query, shift, of_key)
        prompts, keys, prompt_query = length.prompts("long"), length.prompts("long", of_key), query
        if prompts is None or keys is None:
            prompts, keys = target.new_empty(len(target), 0, self.width), plain.new_empty(len(target), 0, 1)
        elif length.plain_prompt_query:
            prompt_query, plain = target, self._of_query(target, shift, of_key)
        of_prompts = plain[:, None] + keys + self.of_product(prompt_query[:, None] * prompts)
        # Behaviours and prompts are one batch, since the activation looks at all of it.
        first = span_linear(
            query,
            table,
            spans,
            of_key,
            self.of_product.weight,
            of_query,
            of_prompts.flatten(0, 1),
        )
        weight, prompt_weight = self.network(first).split([len(spans.index), prompts[..., 0].numel()])
        prompt_weight = prompt_weight.view(*prompts.shape[:2], 1)
        if length.prompt_offset is not None:
            prompt_weight = prompt_weight * length.prompt_offset.exp()
        interest = span_sum(weight, table[:, None], spans)[:, 0] + (prompt_weight * prompts).sum(1)
        weight, prompt_weight = weight.detach(), prompt_weight.detach()
        temperature = length.temperature("long")
        if temperature is not None:  # on the sums, of which there are fewer than weights
            interest = interest / temperature[:, None]
            weight = weight / temperature.detach().index_select(0, spans.row)[:, None]
            prompt_weight = prompt_weight / temperature.detach()[:, None, None]
        record = AttentionRecord(weight, spans, prompt_weight)
        return Interests(interest, attention={"long": record})

    def _of_query(
        self,
        query: Float[Tensor, "samples width"],
        shift: Float[Tensor, "samples width"] | None,
        of_key: Float[Tensor, "units width"],
    ) -> Float[Tensor, "samples units"]:
        """What the first layer takes from the query alone, and from what the length adds to all keys."""
        weight = self.of_query.weight + self.of_difference.weight
        out = nn.functional.linear(query, weight, self.of_query.bias)
        if shift is not None:
            out = out + nn.functional.linear(shift, of_key) + self.of_product(query * shift)
        return out
