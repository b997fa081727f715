"""The whole predictor: embeddings, a backbone, the length, a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import suggest
from lain.backbones import Backbone
from lain.data.batch import Batch
from lain.data.schema import Feature
from lain.layers.embedding import FeatureEmbedding, values_of
from lain.length import LengthAdapter, LengthOptions
from lain.ops.attention import AttentionRecord


@dataclass(frozen=True, eq=False)
class Output:
    """What the model says of a batch.

    Args:
        logit: Log-odds of a click.
        auxiliary: Log-odds of the backbone's auxiliary head, or None.
        attention: Attention weights by branch.
    """

    logit: Float[Tensor, " samples"]
    auxiliary: Float[Tensor, " samples"] | None
    attention: dict[str, AttentionRecord]


class Head(nn.Module):
    """MLP from everything known of a sample to one logit, optionally told about the length.

    Args:
        width: Width of the input.
        hidden: Widths of the hidden layers.
        dropout: Share of hidden units dropped in training.
        batch_norm: Normalise hidden layers over the batch.

    Raises:
        ValueError: ``dropout`` outside [0, 1), or no hidden layer.
    """

    def __init__(
        self,
        *,
        width: int,
        hidden: Sequence[int],
        dropout: float,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden must name positive widths, got {list(hidden)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.first = nn.Linear(width, hidden[0])
        layers: list[nn.Module] = []
        for number, units in enumerate(hidden):
            if number:
                layers.append(nn.Linear(hidden[number - 1], units))
            layers += (
                [nn.BatchNorm1d(units)] * batch_norm + [nn.ReLU()] + [nn.Dropout(dropout)] * (dropout > 0)
            )
        self.rest = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))
        self.told: nn.Linear | None = None
        self.film = False

    def tell(self, width: int, film: bool) -> None:
        """Let the first layer be told a vector: added to it, or (``film``) scaling and shifting it.

        Its weights start at zero, without effect.
        """
        self.film = film
        self.told = nn.Linear(width, self.first.out_features * (1 + film), bias=False)
        nn.init.zeros_(self.told.weight)

    def forward(
        self, x: Float[Tensor, "samples width"], told: Float[Tensor, "samples told"] | None
    ) -> Float[Tensor, " samples"]:
        """The logits."""
        first: Tensor = self.first(x)
        if self.told is not None and told is not None:
            word: Tensor = self.told(told)
            if self.film:
                scale, shift = word.chunk(2, 1)
                first = first * (1 + scale) + shift
            else:
                first = first + word
        out: Tensor = self.rest(first)
        return out[:, 0]


class CTRModel(nn.Module):
    """Click-through predictor.

    logit = head([features of user and context, target, interests]). A behaviour's vector is its item's plus
    those of its columns; the target has none. The parts that the length and the columns add are made last,
    so that models with and without them start from equal weights under equal seeds.

    Args:
        features: Features of the data set.
        embedding_dim: Width of each feature's vector.
        backbone: Builds the backbone for a given item width.
        length: The method's choices.
        hidden: Widths of the head's hidden layers.
        dropout: Share of the head's hidden units dropped in training.
        batch_norm: Normalise the head's hidden layers over the batch.
        id_std: Standard deviation of the start of id tables.
        feature_std: Standard deviation of the start of all other tables.
        sparse: Row-sparse embedding gradients; None decides by table size.
        columns: Columns of the behaviours that are embedded with the item.

    Raises:
        ValueError: No feature of a behaviour has such a name, or it is a time.
        ConfigError: The length conditions a branch that the backbone does not have.
    """

    def __init__(
        self,
        *,
        features: Sequence[Feature],
        embedding_dim: int,
        backbone: Callable[..., Backbone],
        length: LengthOptions,
        hidden: Sequence[int],
        dropout: float = 0.0,
        batch_norm: bool = False,
        id_std: float = 0.1,
        feature_std: float = 0.3,
        sparse: bool | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        super().__init__()

        def embedding(chosen: list[Feature], dim: int = embedding_dim) -> FeatureEmbedding:
            return FeatureEmbedding(chosen, dim=dim, id_std=id_std, feature_std=feature_std, sparse=sparse)

        of_row = [f for f in features if f.source in ("user", "context") and f.kind != "time"]
        self.items = embedding([f for f in features if f.source == "item"])
        self.context = embedding(of_row)
        width = self.items.width
        self.backbone = backbone(width=width)
        known = self.context.width + width

        def head(own: int) -> Head:
            return Head(width=known + own, hidden=hidden, dropout=dropout, batch_norm=batch_norm)

        self.head = head(self.backbone.interest_width)
        self.auxiliary_head = head(self.backbone.auxiliary_width) if self.backbone.auxiliary_width else None
        self.length = LengthAdapter(width=width, branches=self.backbone.branches, options=length)
        if self.length.head_width:
            self.head.tell(self.length.head_width, film=length.head == "film")
        chosen = columns_of(features, columns)
        self.columns = embedding(chosen, dim=width) if chosen else None

    def forward(self, batch: Batch) -> Output:
        """Score a batch."""
        table = self.items(values_of(batch.items, batch.item_features, self.items.features))
        if self.columns is not None:
            table = table + torch.unflatten(self.columns(batch.columns), 1, (-1, self.items.width)).sum(1)
        target = table.index_select(0, batch.target)
        state = self.length(batch.length, table.dtype)
        found = self.backbone(target, table, batch.spans(), state)
        known = [target]
        if self.context.features:
            known = [self.context(batch.features), target]
        logit = self.head(torch.cat([*known, found.vectors], 1), state.head())
        auxiliary = None
        if self.auxiliary_head is not None and found.auxiliary is not None:
            auxiliary = self.auxiliary_head(torch.cat([*known, found.auxiliary], 1), None)
        return Output(logit, auxiliary, found.attention)

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
