"""Features as vectors: categorical tables, lists averaged, frozen vectors projected."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from lain.data.schema import Feature

SPARSE_ROWS = 100_000
"""Tables with more rows than this get row-sparse gradients (see :class:`lain.training.optim.RowAdam`)."""


_TAKEN = frozenset(dir(nn.ModuleDict()))


def module_key(name: str) -> str:
    """A key of :class:`torch.nn.ModuleDict` for any text; a plain name stays as it is.

    Torch takes neither a dot, nor nothing, nor what its own class has (``type``, ``keys``). Characters
    besides letters, digits, ``_`` and ``-`` become ``~HEX~``, a name that torch has gets ``~`` behind;
    different names give different keys.
    """
    key = re.sub(r"[^A-Za-z0-9_-]", lambda found: f"~{ord(found[0]):x}~", name)
    return f"{key}~" if key in _TAKEN or not key else key


class FeatureEmbedding(nn.Module):
    """All features of one kind of thing (item, or user and context), side by side.

    A categorical value is looked up; a list is the mean of its entries' vectors, 0 meaning no entry;
    a frozen vector is projected without bias. Value 0 is padding and stays the zero vector.

    Args:
        features: The features, in the order in which their vectors stand.
        dim: Width of each feature's vector.
        id_std: Standard deviation of the start of ids (``item_id``, ``user_id``).
        feature_std: Standard deviation of the start of all other tables.
        sparse: Row-sparse gradients; None decides by the size of each table.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        *,
        dim: int,
        id_std: float = 0.1,
        feature_std: float = 0.3,
        sparse: bool | None = None,
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.layers = nn.ModuleDict()
        for feature in self.features:
            key = module_key(feature.name)
            if feature.kind == "vector":
                self.layers[key] = nn.Linear(feature.width, dim, bias=False)
                continue
            is_sparse = feature.size > SPARSE_ROWS if sparse is None else sparse
            std = id_std if feature.name in ("item_id", "user_id") else feature_std
            table: nn.Embedding | nn.EmbeddingBag
            if feature.kind == "categorical":
                padding = None if feature.name == "user_id" else 0  # users are numbered from 0
                table = nn.Embedding(feature.size, dim, padding_idx=padding, sparse=is_sparse)
            else:
                table = nn.EmbeddingBag(feature.size, dim, mode="mean", padding_idx=0, sparse=is_sparse)
            nn.init.normal_(table.weight, std=std)
            if table.padding_idx is not None:
                with torch.no_grad():
                    table.weight[table.padding_idx] = 0
            self.layers[key] = table
        self.width = dim * len(self.features)

    def forward(self, values: Mapping[str, Num[Tensor, "rows ..."]]) -> Float[Tensor, "rows width"]:
        """The vectors of rows that hold these values."""
        return torch.cat([self.layers[module_key(f.name)](values[f.name]) for f in self.features], dim=1)

    def tables(self) -> list[nn.Parameter]:
        """The lookup tables' weights, which the embedding penalty is for."""
        layers = [x for x in self.layers.values() if isinstance(x, (nn.Embedding, nn.EmbeddingBag))]
        return [parameter for layer in layers for parameter in layer.parameters()]


def values_of(
    ids: Int[Tensor, " rows"], values: Mapping[str, Num[Tensor, "rows ..."]], features: Sequence[Feature]
) -> dict[str, Num[Tensor, "rows ..."]]:
    """The features' values, with the ids themselves under ``item_id`` if that is a feature."""
    return {f.name: ids if f.name == "item_id" else values[f.name] for f in features}
