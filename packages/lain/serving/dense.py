"""A model as plain tensors: one user's history against any candidates, without spans; what is exported.

With one history everything ragged is dense: the scores of C candidates against L behaviours are a matrix. The
arithmetic is that of the backbones, from the same weights; a search keeps its choice as a mask, which any
runtime has the operations for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num, Shaped
from torch import Tensor, nn

from common.errors import ConfigError
from lain.backbones import BACKBONES, Backbone
from lain.backbones.din import DIN
from lain.backbones.eta import ETA
from lain.backbones.sdim import SDIM
from lain.backbones.sim import SIM
from lain.backbones.twin import TWIN
from lain.layers.attention import TargetAttention
from lain.layers.embedding import FeatureEmbedding, module_key
from lain.length import LengthState
from lain.model import CTRModel

Tables = Mapping[str, Mapping[str, Shaped[np.ndarray, "rows ..."]]]
Values = Mapping[str, Num[Tensor, "rows ..."]]


class DenseModel(nn.Module):
    """A predictor for one user and any number of candidates.

    Equal to :class:`~lain.model.CTRModel` on that user's history, but for rounding. Features of items and
    users are looked up inside by index; index 0 of an item is padding.

    Args:
        model: The predictor, whose weights are shared.
        tables: Features of items and users, one row per index, under ``item`` and ``user``.
        max_length: Behaviours that are read, the latest ones.

    Raises:
        ConfigError: The backbone has no such form.
    """

    def __init__(self, model: CTRModel, tables: Tables, *, max_length: int) -> None:
        super().__init__()
        kind = type(model.backbone)
        if kind not in FORMS:
            known = ", ".join(name for name in BACKBONES.names() if BACKBONES[name] in FORMS)
            raise ConfigError(
                f"export: the backbone {kind.__name__} has no form of plain tensors; {known} have one"
            )
        self.model, self.max_length, self.form = model.eval(), max_length, FORMS[kind]
        self.names: dict[str, list[str]] = {}
        for source in ("item", "user"):
            self.names[source] = list(tables[source])
            for number, table in enumerate(tables[source].values()):
                number_kind = np.int64 if np.issubdtype(table.dtype, np.integer) else np.float32
                self.register_buffer(
                    f"{source}_{number}", torch.from_numpy(np.array(table, dtype=number_kind))
                )

    def forward(
        self,
        history: Int[Tensor, " behaviours"],
        mask: Bool[Tensor, " behaviours"],
        length: Int[Tensor, " one"],
        candidates: Int[Tensor, " candidates"],
        user: Int[Tensor, " one"],
        context: Values,
        columns: Values,
    ) -> tuple[Float[Tensor, " candidates"], Float[Tensor, " candidates"]]:
        """Logits and click probabilities.

        Args:
            history: Items, oldest first, padded with 0 anywhere.
            mask: Which of them are behaviours.
            length: True length of the history, in behaviours.
            candidates: Items.
            user: Index of the user.
            context: Encoded features of the moment, a row per candidate.
            columns: Encoded columns of the behaviours, a row for each.
        """
        model = self.model
        # One behaviour more, which is none: no runtime then reduces over nothing.
        history, mask = (torch.cat([x.new_zeros(1), x]) for x in (history, mask))
        columns = {name: torch.cat([x.new_zeros(1, *x.shape[1:]), x]) for name, x in columns.items()}
        table = self._vectors(history, columns)
        target = self._vectors(candidates, {})
        samples = target.shape[0]
        state = model.length(length.repeat(samples), target.dtype)
        values = {name: x.expand(samples, *x.shape[1:]) for name, x in self.rows("user", user).items()}
        known = [embed(model.context, {**values, **context})] if model.context.features else []
        interest = self.form(model.backbone, target, table, _tail(mask, self.max_length), state)
        logit = model.head(torch.cat([*known, target, interest], 1), state.head())
        return logit, torch.sigmoid(logit)

    def rows(self, source: str, index: Int[Tensor, " rows"]) -> dict[str, Num[Tensor, "rows ..."]]:
        """Features of items or users, by their indices."""
        found = [getattr(self, f"{source}_{number}") for number in range(len(self.names[source]))]
        return {name: table[index] for name, table in zip(self.names[source], found, strict=True)}

    def _vectors(self, index: Int[Tensor, " rows"], columns: Values) -> Float[Tensor, "rows width"]:
        model = self.model
        out = embed(model.items, {"item_id": index, **self.rows("item", index)})
        if model.columns is not None and columns:
            out = out + torch.unflatten(embed(model.columns, columns), 1, (-1, model.items.width)).sum(1)
        return out


def embed(layer: FeatureEmbedding, values: Values) -> Float[Tensor, "rows width"]:
    """What a :class:`~lain.layers.embedding.FeatureEmbedding` gives; a list's mean is spelled out."""
    parts = []
    for feature in layer.features:
        own, value = layer.layers[module_key(feature.name)], values[feature.name]
        if isinstance(own, nn.EmbeddingBag):
            there = (value != 0).to(own.weight.dtype)[..., None]
            total = (nn.functional.embedding(value, own.weight) * there).sum(1)
            parts.append(total / there.sum(1).clamp(min=1))
        elif isinstance(own, nn.Embedding):
            parts.append(nn.functional.embedding(value, own.weight))
        else:
            parts.append(own(value))
    return torch.cat(parts, 1)


def _tail(mask: Bool[Tensor, " behaviours"], count: int) -> Bool[Tensor, " behaviours"]:
    """The last ``count`` behaviours."""
    return mask & (mask.long().flip(0).cumsum(0).flip(0) <= count)


def _best(
    score: Float[Tensor, "samples behaviours"], mask: Bool[Tensor, " behaviours"], count: int
) -> Bool[Tensor, "samples behaviours"]:
    """The ``count`` best behaviours of each sample; of equal scores the latest win."""
    score = score.masked_fill(~mask, float("-inf"))
    nothing = score.new_full((1, count), float("-inf")).expand(score.shape[0], count)
    bar = torch.cat([score, nothing], 1).topk(count, dim=1).values[:, -1:]
    above, equal = (score > bar) & mask, (score == bar) & mask
    room = count - above.long().sum(1, keepdim=True)
    latest = equal.long().flip(1).cumsum(1).flip(1)
    return above | (equal & (latest <= room))


def _heads(x: Float[Tensor, "n attention"], heads: int) -> Float[Tensor, "heads n dim"]:
    return torch.unflatten(x, 1, (heads, -1)).transpose(0, 1)


def _attend(
    attention: TargetAttention,
    target: Float[Tensor, "samples width"],
    table: Float[Tensor, "behaviours width"],
    mask: Bool[Tensor, "#samples behaviours"],
    length: LengthState,
) -> Float[Tensor, "samples width"]:
    """Target attention over the behaviours of the mask and the prompts (see TargetAttention)."""
    branch, heads = attention.branch, attention.heads
    plain = attention.query(target)
    changed, shift, tau = length.query(branch, plain), length.key_shift(branch), length.temperature(branch)
    if tau is not None:
        plain, changed = plain / tau[:, None], changed / tau[:, None]
    keys, values = attention.key(table), attention.value(table)
    scale = (keys.shape[1] // heads) ** 0.5
    logits = _heads(changed, heads) @ _heads(keys, heads).transpose(1, 2)
    prompts = length.prompts(branch, torch.cat([attention.key.weight, attention.value.weight]))
    if shift is not None:
        logits = logits + (_heads(changed, heads) * _heads(shift, heads)).sum(2, keepdim=True)
    logits = (logits / scale).masked_fill(~mask, float("-inf"))
    peak = logits.amax(2, keepdim=True)
    extra = None
    if prompts is not None:
        prompt_keys, prompt_values = torch.unflatten(prompts, 2, (2 * heads, -1)).chunk(2, 2)
        if shift is not None:
            prompt_keys = prompt_keys + torch.unflatten(shift, 1, (heads, -1))[:, None]
        asked = torch.unflatten(plain if length.plain_prompt_query else changed, 1, (heads, -1))
        extra = (prompt_keys * asked[:, None]).sum(3) / scale
        if length.prompt_offset is not None:
            offset = length.prompt_offset
            extra = extra + (offset if tau is None else (offset / tau)[:, None, None])
        extra = extra.permute(2, 0, 1)
        peak = torch.maximum(peak, extra.amax(2, keepdim=True))
    peak = peak.clamp(min=-1e30)  # without behaviours and prompts
    weight = torch.exp(logits - peak)
    total = weight.sum(2, keepdim=True)
    mixed = weight @ _heads(values, heads)
    if extra is not None:
        of_extra = torch.exp(extra - peak)
        total = total + of_extra.sum(2, keepdim=True)
        mixed = mixed + (of_extra.permute(1, 2, 0)[..., None] * prompt_values).sum(1).transpose(0, 1)
    mixed = mixed / total.clamp(min=1e-30)
    return attention.out(mixed.transpose(0, 1).flatten(1))  # type: ignore[no-any-return]  # modules are untyped


def _din(
    backbone: DIN,
    target: Float[Tensor, "samples width"],
    table: Float[Tensor, "behaviours width"],
    mask: Bool[Tensor, " behaviours"],
    length: LengthState,
) -> Float[Tensor, "samples interest"]:
    """DIN (see there): a small network weighs every behaviour."""
    query, shift = length.query("long", target), length.key_shift("long")
    product = backbone.of_product.weight
    of_key = backbone.of_key.weight - backbone.of_difference.weight
    of_query = backbone._of_query(query, shift, of_key)
    # The products' layer for each candidate is one matrix over its behaviours.
    first = ((query[:, None] * product) @ table.T).transpose(1, 2)
    first = first + of_query[:, None] + nn.functional.linear(table, of_key)
    weight = torch.unflatten(backbone.network(first.flatten(0, 1))[:, 0], 0, (-1, table.shape[0]))
    interest = weight.masked_fill(~mask, 0.0) @ table
    prompts, keys = length.prompts("long"), length.prompts("long", of_key)
    if prompts is not None and keys is not None:
        asked, plain = query, of_query
        if length.plain_prompt_query:
            asked, plain = target, backbone._of_query(target, shift, of_key)
        first = plain[:, None] + keys + backbone.of_product(asked[:, None] * prompts)
        of_prompts = torch.unflatten(backbone.network(first.flatten(0, 1)), 0, (-1, prompts.shape[1]))
        if length.prompt_offset is not None:
            of_prompts = of_prompts * length.prompt_offset.exp()
        interest = interest + (of_prompts * prompts).sum(1)
    tau = length.temperature("long")
    return interest if tau is None else interest / tau[:, None]


def _twin(
    backbone: TWIN,
    target: Float[Tensor, "samples width"],
    table: Float[Tensor, "behaviours width"],
    mask: Bool[Tensor, " behaviours"],
    length: LengthState,
) -> Float[Tensor, "samples interest"]:
    """TWIN (see there): attention over the latest behaviours, and over those with its largest logits."""
    short = _attend(backbone.short, target, table, _tail(mask, backbone.short_length)[None], length)
    query = length.query("long", backbone.long.query(target))
    chosen = _best(query @ backbone.long.key(table).T, mask, backbone.top_k)
    return torch.cat([short, _attend(backbone.long, target, table, chosen, length)], 1)


def _sim(
    backbone: SIM,
    target: Float[Tensor, "samples width"],
    table: Float[Tensor, "behaviours width"],
    mask: Bool[Tensor, " behaviours"],
    length: LengthState,
) -> Float[Tensor, "samples interest"]:
    """SIM (see there): attention over the latest behaviours, and over those that its search finds."""
    short = _attend(backbone.short, target, table, _tail(mask, backbone.short_length)[None], length)
    relevance = backbone.search_query(target) @ backbone.search_key(table).T
    chosen = _best(relevance, mask, backbone.top_k)
    return torch.cat([short, _attend(backbone.long, target, table, chosen, length)], 1)


def _sdim(
    backbone: SDIM,
    target: Float[Tensor, "samples width"],
    table: Float[Tensor, "behaviours width"],
    mask: Bool[Tensor, " behaviours"],
    length: LengthState,
) -> Float[Tensor, "samples interest"]:
    """SDIM (see there): behaviours whose hashes meet the target's; signs instead of packed bits."""
    short = _attend(backbone.short, target, table, _tail(mask, backbone.short_length)[None], length)

    def signs(items: Float[Tensor, "*n width"]) -> Float[Tensor, "*n hashes bits"]:
        up = (items @ backbone.projection > 0).to(items.dtype)
        return torch.unflatten(2 * up - 1, -1, (backbone.hashes, -1))

    of_target, all_equal = signs(target), backbone.hash_bits - 0.5
    agree = of_target.transpose(0, 1) @ signs(table).permute(1, 2, 0)  # [hashes, samples, behaviours]
    meets = ((agree > all_equal) & mask).to(table.dtype)
    total = meets @ table
    some = meets.sum(2, keepdim=True) > 0
    prompts = length.prompts("long")
    if prompts is not None:
        near = (signs(prompts) * of_target[:, None]).sum(-1) > all_equal  # [samples, prompts, hashes]
        total = total + (near.to(table.dtype).permute(2, 0, 1)[..., None] * prompts).sum(2)
    unit = nn.functional.normalize(torch.where(some, total, 1.0), dim=2)
    return torch.cat([short, torch.where(some, unit, 0.0).mean(0)], 1)


def _eta(
    backbone: ETA,
    target: Float[Tensor, "samples width"],
    table: Float[Tensor, "behaviours width"],
    mask: Bool[Tensor, " behaviours"],
    length: LengthState,
) -> Float[Tensor, "samples interest"]:
    """ETA (see there): attention over the latest behaviours, and over those with the nearest hashes."""
    short = _attend(backbone.short, target, table, _tail(mask, backbone.short_length)[None], length)
    chosen = _best(backbone.signs(target) @ backbone.signs(table).T, mask, backbone.top_k)
    return torch.cat([short, _attend(backbone.long, target, table, chosen, length)], 1)


Form = Callable[[Any, Tensor, Tensor, Tensor, LengthState], Tensor]

FORMS: dict[type[Backbone], Form] = {DIN: _din, TWIN: _twin, SIM: _sim, SDIM: _sdim, ETA: _eta}
"""What each backbone computes, by its class."""
