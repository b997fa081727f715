"""DIN: a small network weighs every behaviour against the target; the weights are not normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lain.attention import AttentionRecord, with_prompts
from lain.backbones.base import Backbone, Interests, positive
from lain.length import LengthState
from lain.spans import Spans, pair_linear, span_sum, take


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


class DIN(Backbone):
    """Deep interest network.

    interest = sum_p a(target, item_p) item_p, with a = network([q, k, q - k, q * k]), no softmax.
    Source: Zhou et al., DIN, KDD 2018; input order as in FuxiCTR. The first layer is split:
    W [q; k; q - k; q * k] = (W_q + W_d) q + (W_k - W_d) k + W_p (q * k), so that the first two terms are
    computed once per sample and once per item.

    Weights of prompts are multiplied by the exponential of the prompts' offset, if there is one. The
    length bends q and k before the network (W_q1 is the identity) and divides a by tau; since the
    weights are not normalised, the keys' half acts here.

    Args:
        width: Width d of an item's vector.
        din_hidden: Widths of the scoring network's hidden layers.
        din_activation: Their activation; ``dice`` is the paper's.

    Raises:
        ValueError: A width is not positive, or there is no hidden layer.
    """

    name: ClassVar[str] = "din"

    def __init__(
        self,
        *,
        width: int,
        din_hidden: Sequence[int] = (64,),
        din_activation: Literal["dice", "relu"] = "dice",
    ) -> None:
        super().__init__()
        if not din_hidden:
            raise ValueError("din_hidden must name at least one width, got none")
        positive(width=width, din_hidden=min(din_hidden))
        self.width = width
        activation = Dice if din_activation == "dice" else lambda units: nn.ReLU()
        first, *rest = din_hidden
        self.of_query = nn.Linear(width, first)
        self.of_key = nn.Linear(width, first, bias=False)
        self.of_difference = nn.Linear(width, first, bias=False)
        self.of_product = nn.Linear(width, first, bias=False)
        layers: list[nn.Module] = [activation(first)]
        for before, after in zip(din_hidden, rest, strict=False):
            layers += [nn.Linear(before, after), activation(after)]
        self.network = nn.Sequential(*layers, nn.Linear(din_hidden[-1], 1))

    @property
    def branches(self) -> dict[str, int]:
        """One branch over the whole history."""
        return {"long": self.width}

    @property
    def interest_width(self) -> int:
        """One interest vector."""
        return self.width

    def forward(
        self,
        target: Float[Tensor, "samples width"],
        table: Float[Tensor, "rows width"],
        spans: Spans,
        length: LengthState,
    ) -> Interests:
        """The weighted sum of behaviours."""
        table, spans, place = with_prompts(table, spans, length.prompts("long"))
        query, row = length.query("long", target), spans.row
        shift = length.key_shift("long")
        if place is not None and length.plain_prompt_query and query is not target:
            # Prompts are scored with the plain target: a second query per sample, used by prompts alone.
            row = row.index_add(0, place.flatten(), torch.full_like(place.flatten(), len(target)))
            query = torch.cat([query, target])
            shift = None if shift is None else torch.cat([shift, shift])
        weight = self._weigh(query, row, table, spans, shift)
        offset = length.prompt_offset
        if place is not None and offset is not None:
            factor = torch.ones_like(weight).index_copy(
                0, place.flatten(), offset.exp().expand(place.numel(), 1)
            )
            weight = weight * factor
        temperature = length.temperature("long")
        if temperature is not None:
            weight = weight / temperature.index_select(0, spans.row)[:, None]
        interest = span_sum(weight, table[:, None], spans)[:, 0]
        return Interests(interest, attention={"long": AttentionRecord(weight.detach(), spans, place)})

    def _weigh(
        self,
        query: Float[Tensor, "queries width"],
        row: Int[Tensor, " pairs"],
        table: Float[Tensor, "rows width"],
        spans: Spans,
        shift: Float[Tensor, "queries width"] | None,
    ) -> Float[Tensor, "pairs 1"]:
        of_query = self.of_query(query) + self.of_difference(query)
        of_key = self.of_key(table) - self.of_difference(table)
        if shift is not None:
            of_query = (
                of_query + self.of_key(shift) - self.of_difference(shift) + self.of_product(query * shift)
            )
        of_product = pair_linear(query, row, table, spans.index, self.of_product.weight)
        out: Tensor = self.network(take(of_query, row) + take(of_key, spans.index) + of_product)
        return out
