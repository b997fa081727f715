"""The whole predictor: embeddings, a backbone, the length, a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from common.errors import suggest
from lain.backbones import Backbone, Memory
from lain.data.batch import Batch
from lain.data.schema import Feature
from lain.heads import Head
from lain.layers.attention import AttentionRecord
from lain.layers.embedding import FeatureEmbedding, values_of
from lain.length import LengthAdapter, LengthOptions, LengthState


@dataclass(frozen=True, eq=False)
class Output:
    """What the model gives for a batch.

    Args:
        logit: Log-odds of a click.
        auxiliary: Log-odds of the backbone's auxiliary head, or None.
        attention: Attention weights by branch.
    """

    logit: Float[Tensor, " samples"]
    auxiliary: Float[Tensor, " samples"] | None
    attention: dict[str, AttentionRecord]


class CTRModel(nn.Module):
    """Click-through predictor.

    logit = head([features of user and context, target, interests]). A behaviour's vector is its item's plus
    those of its columns; the target has none. The parts that the length and the columns add are made last,
    so that models with and without them start from equal weights under equal seeds.

    Args:
        features: Features of the data set.
        embedding: Makes the embedding of some features; called with ``dim`` for those of the behaviours.
        backbone: Makes the backbone for a ``width`` of items and a ``context_width``.
        head: Makes a head for a ``width``; called twice where the backbone has an auxiliary output.
        length: The method's choices.
        columns: Columns of the behaviours that are embedded with the item.

    Raises:
        ValueError: No feature of a behaviour has such a name, or it is a time.
        ConfigError: The length conditions a branch that the backbone does not have.
    """

    def __init__(
        self,
        *,
        features: Sequence[Feature],
        embedding: Callable[..., FeatureEmbedding],
        backbone: Callable[..., Backbone],
        head: Callable[..., Head],
        length: LengthOptions,
        columns: Sequence[str] = (),
    ) -> None:
        super().__init__()
        of_row = [f for f in features if f.source in ("user", "context") and f.kind != "time"]
        self.items = embedding([f for f in features if f.source == "item"])
        self.context = embedding(of_row)
        width = self.items.width
        self.backbone = backbone(width=width, context_width=self.context.width)
        known, auxiliary = self.context.width + width, self.backbone.auxiliary_width
        self.head = head(width=known + self.backbone.interest_width)
        self.auxiliary_head = head(width=known + auxiliary) if auxiliary else None
        self.length = LengthAdapter(width=width, branches=self.backbone.branches, options=length)
        if self.length.head_width:
            self.head.condition_on(self.length.head_width, film=length.head == "film")
        chosen = columns_of(features, columns)
        self.columns = embedding(chosen, dim=width) if chosen else None

    def forward(self, batch: Batch) -> Output:
        """Score a batch."""
        table = self.table(batch)
        target = table.index_select(0, batch.target)
        state = self.length(batch.length, table.dtype)
        memory = self.backbone.encode(table, batch.spans(), state)
        return self.score(memory, target, batch.features, state)

    def table(self, batch: Batch) -> Float[Tensor, "items width"]:
        """The vectors of a batch's items, and of what is known of behaviours beside them."""
        return self.vectors(batch.items, batch.item_features, batch.columns)

    def vectors(
        self,
        items: Int[Tensor, " items"],
        values: Mapping[str, Num[Tensor, "items ..."]],
        columns: Mapping[str, Num[Tensor, "items ..."]] | None = None,
    ) -> Float[Tensor, "items width"]:
        """The vectors of items, or of behaviours.

        Args:
            items: Their indices.
            values: Their features.
            columns: What else is known of the behaviours; nothing of items, such as targets.
        """
        table: Tensor = self.items(values_of(items, values, self.items.features))
        if self.columns is not None and columns:
            table = table + torch.unflatten(self.columns(columns), 1, (-1, self.items.width)).sum(1)
        return table

    def score(
        self,
        memory: Memory,
        target: Float[Tensor, "samples width"],
        features: Mapping[str, Num[Tensor, "samples ..."]],
        length: LengthState,
    ) -> Output:
        """Score targets against what the backbone remembers of their histories.

        Args:
            memory: One history per sample (:meth:`~lain.backbones.base.Memory.take` repeats them).
            target: Each sample's target item.
            features: Values of the user and context features.
            length: The samples' true lengths.
        """
        context = self.context(features) if self.context.features else target.new_empty(len(target), 0)
        interests = self.backbone.score(memory, target, context, length)
        known = [context, target] if self.context.features else [target]
        logit = self.head(torch.cat([*known, interests.vectors], 1), length.head())
        auxiliary = None
        if self.auxiliary_head is not None and interests.auxiliary is not None:
            auxiliary = self.auxiliary_head(torch.cat([*known, interests.auxiliary], 1), None)
        return Output(logit, auxiliary, interests.attention)

    def tables(self) -> list[nn.Parameter]:
        """The embedding tables, which the embedding penalty is for."""
        return self.items.tables() + self.context.tables() + (self.columns.tables() if self.columns else [])


def columns_of(features: Sequence[Feature], names: Sequence[str]) -> list[Feature]:
    """The columns of the behaviours that are to be embedded.

    Raises:
        ValueError: There is no such column, or it is a point in time.
    """
    there = {f.name: f for f in features if f.source == "behaviour"}
    for name in names:
        if name not in there:
            raise ValueError(f"columns: no column '{name}' of the behaviours{suggest(name, there)}")
        if there[name].kind == "time":
            raise ValueError(f"columns: '{name}' is a point in time, which has no vector; give a categorical "
                             "column of it (hour, gap to the behaviour before)")  # fmt: skip
    if len(set(names)) < len(names):
        raise ValueError(f"columns: names a column twice, got {', '.join(names)}")
    return [there[name] for name in names]
