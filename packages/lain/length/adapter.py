"""All parts of the method for one backbone, and their answers for one batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.errors import ConfigError
from lain.length.affine import Affine
from lain.length.encoder import SpectralLengthEncoder, scale_length
from lain.length.modulation import LengthModulation
from lain.length.options import LengthOptions
from lain.length.prompt import LengthPrompt


class LengthAdapter(nn.Module):
    """The parts of the method that the options switch on, for one backbone.

    Args:
        width: Width d of a behaviour.
        branches: The backbone's branches, and the width in which each compares query and keys (0: the
            branch compares nothing, so it takes prompts only).
        options: The choices.

    Raises:
        ConfigError: ``options.branches`` names a branch that the backbone does not have.
    """

    def __init__(self, *, width: int, branches: Mapping[str, int], options: LengthOptions) -> None:
        super().__init__()
        unknown = [b for b in options.branches if b not in branches]
        if unknown:
            raise ConfigError(
                f"length.branches: no branch {', '.join(unknown)}; this backbone has {', '.join(branches)}"
            )
        self.options = options
        self.on = tuple(b for b in branches if not options.branches or b in options.branches)
        self.encoder = self.prompt = None
        if options.encoded:
            self.encoder = SpectralLengthEncoder(
                width=width,
                frequencies=options.frequencies,
                frequency_range=options.frequency_range,
                hidden=options.hidden,
            )
        if options.prompts:
            self.prompt = LengthPrompt(
                width=width,
                prompts=options.prompts,
                hidden=options.hidden,
                start=options.prompt_start,
                offset=options.prompt_offset,
            )
        modulated = options.query != "none" or options.keys or options.temperature != "none"
        self.modulation = nn.ModuleDict(
            {
                branch: LengthModulation(width=width, attention=branches[branch], options=options)
                for branch in self.on
                if modulated and branches[branch]
            }
        )

    @property
    def head_width(self) -> int:
        """Width of what conditions the head (see :meth:`LengthState.head`)."""
        if self.options.head == "loglength":
            return 1
        return self.encoder.project.out_features if self.encoder and self.options.head != "none" else 0

    def forward(self, length: Int[Tensor, " samples"], dtype: torch.dtype) -> LengthState:
        """The state of a batch, from its true lengths, in the backbone's number format."""
        scaled = scale_length(length, self.options.scale, dtype)
        encoding = None if self.encoder is None else self.encoder(scaled)
        prompts = None if self.prompt is None or encoding is None else self.prompt(encoding)
        return LengthState(self, length, scaled, encoding, prompts)


@dataclass(frozen=True, eq=False)
class LengthState:
    """A :class:`LengthAdapter`'s answers for one batch; a backbone asks them branch by branch."""

    adapter: LengthAdapter
    length: Int[Tensor, " samples"]
    scaled: Float[Tensor, " samples"]
    encoding: Affine | None
    all_prompts: Affine | None
    plain_prompt_query: bool = field(init=False)

    def __post_init__(self) -> None:
        """Note which query scores the prompts."""
        plain = self.adapter.options.prompt_query == "plain"
        object.__setattr__(self, "plain_prompt_query", plain)

    def _modulation(self, branch: str) -> LengthModulation | None:
        modulation = self.adapter.modulation
        found = modulation[branch] if branch in modulation else None
        assert found is None or isinstance(found, LengthModulation)
        return found

    @property
    def prompt_offset(self) -> Float[Tensor, ""] | None:
        """What is added to the logits of prompts."""
        return None if self.adapter.prompt is None else self.adapter.prompt.offset

    def prompts(
        self, branch: str, through: Float[Tensor, "out width"] | None = None
    ) -> Float[Tensor, "samples prompts out"] | None:
        """Behaviours to put in front of the branch's history; or, for less work, ``prompts @ through.T``."""
        if self.all_prompts is None or branch not in self.adapter.on:
            return None
        return (self.all_prompts if through is None else self.all_prompts.through(through)).value

    def query(
        self, branch: str, query: Float[Tensor, "samples attention"]
    ) -> Float[Tensor, "samples attention"]:
        """The branch's query Q', or Q itself."""
        modulation = self._modulation(branch)
        return query if modulation is None else modulation.query(query, self.encoding)

    def key_shift(self, branch: str) -> Float[Tensor, "samples attention"] | None:
        """What the length adds to every key of a sample: W_k2 e."""
        modulation = self._modulation(branch)
        return None if modulation is None else modulation.key_shift(self.encoding)

    def temperature(self, branch: str) -> Float[Tensor, " samples"] | None:
        """What the branch's logits are divided by."""
        modulation = self._modulation(branch)
        return None if modulation is None else modulation.divisor(self.length, self.scaled, self.encoding)

    def head(self) -> Float[Tensor, "samples head_width"] | None:
        """What conditions the prediction head, or None."""
        kind = self.adapter.options.head
        if kind == "none":
            return None
        if kind == "loglength":
            return (torch.log1p(self.length.to(self.scaled.dtype)) - math.log1p(100))[:, None]
        return None if self.encoding is None else self.encoding.value
