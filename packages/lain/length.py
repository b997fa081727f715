"""LAIN: what a backbone can ask about the length of a history.

The method has three parts, each switchable on its own: a :class:`SpectralLengthEncoder` turns the
true length into a vector, a :class:`LengthPrompt` turns that vector into a few extra behaviours,
and a :class:`LengthModulation` bends a branch's attention by it. A :class:`LengthAdapter` holds
them; per batch it answers a backbone's questions through a :class:`LengthState`. It knows no
backbone, and with everything off its answers leave every number as it was.

Source: LAIN (arXiv 2601.19142). The paper leaves open how the length is scaled, how frequencies,
prompts and modulation start, and where the temperature turns; each is a field of
:class:`LengthConfig` with our measured default, and the preset ``lain-published`` is the literal
reading of the paper's equations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from common.errors import ConfigError

Preset = Literal[
    "base",
    "lain",
    "lain-published",
    "lain-plus",
    "lain-noprompt",
    "lain-notemperature",
    "lain-noquery",
    "loglength",
    "bucket-temperature",
    "temperature-loglength",
]


@dataclass(frozen=True)
class LengthOptions:
    """Every choice of the method, spelled out.

    Args:
        scale: What the method sees of a length L: ``log`` is log(1 + L), ``raw`` is L. Raw lengths
            give gradients on the frequencies hundreds of times larger.
        frequencies: Number d_f of learned frequencies w of the spectral encoder.
        frequency_range: Smallest and largest starting frequency, in radians per unit of the scaled
            length; spaced geometrically.
        hidden: Hidden width of the encoder's and the prompts' MLP.
        prompts: Number k of prompt vectors put in front of a history; 0 switches prompting off.
        prompt_start: ``zero`` starts the prompts' last layer at zero, ``random`` at its usual start.
        prompt_query: Which query scores the prompts: the ``plain`` one, or the ``modulated`` one.
            The modulated query and the prompts feed each other: prompts then take most attention.
        query: ``additive``: Q' = W_q [Q; e] = W_q1 Q + W_q2 e, as published. ``multiplicative``:
            Q' = W_q1 Q * (1 + W_q2 e), which acts differently on different targets (ours).
        keys: Also K' = W_k [K; e], as published. All keys of a history share e, so under a softmax
            this cancels exactly (but for prompts scored with another query); it acts in DIN, whose
            weights are not normalised.
        modulation_start: ``zero`` or ``random`` start of W_q2 and W_k2.
        prompt_offset: Start of a learned number added to the prompts' logits; below 0, prompts hold
            little of the attention until they have learned something. 0: no such number.
        temperature: ``sigmoid``: tau = 1 + gamma sigmoid(-beta (l - l0)), as published, on the scaled
            length l. ``encoded``: tau = exp(w . e), from w = 0, so that it starts neutral and may
            sharpen as well as soften (ours). ``bucket``: one learned tau per length bucket (a control).
        gamma: Start of gamma, the extra softness for the shortest histories.
        beta: Start of beta, per unit of the scaled length.
        positive: Keep beta and gamma positive (softplus), so that short means softer.
        center: L0 in behaviours.
        learn_center: Whether L0 is learned.
        head: What the prediction head is told: nothing, the scaled ``loglength`` (a control), or the
            ``encoding`` e through its own zero-started weights, or ``film``: e scales and shifts the
            head's first layer, from the identity (both ours).
        buckets: Bucket borders in behaviours, for the ``bucket`` temperature.
        branches: Branches that are conditioned; empty means all.
    """

    scale: Literal["log", "raw"] = "log"
    frequencies: int = 16
    frequency_range: tuple[float, float] = (0.1, 10.0)
    hidden: int = 32
    prompts: int = 0
    prompt_start: Literal["zero", "random"] = "zero"
    prompt_query: Literal["plain", "modulated"] = "plain"
    query: Literal["none", "additive", "multiplicative"] = "none"
    keys: bool = False
    modulation_start: Literal["zero", "random"] = "zero"
    prompt_offset: float = 0.0
    temperature: Literal["none", "sigmoid", "encoded", "bucket"] = "none"
    gamma: float = 1.0
    beta: float = 1.0
    positive: bool = True
    center: float = 100.0
    learn_center: bool = False
    head: Literal["none", "loglength", "encoding", "film"] = "none"
    buckets: tuple[int, ...] = (50, 100, 200)
    branches: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that make no model."""
        wrong = []
        if self.frequencies < 1:
            wrong.append(f"frequencies must be at least 1, got {self.frequencies}")
        if self.hidden < 1:
            wrong.append(f"hidden must be at least 1, got {self.hidden}")
        if self.prompts < 0:
            wrong.append(f"prompts must not be negative, got {self.prompts}")
        low, high = self.frequency_range
        if not 0 < low <= high < math.inf:
            wrong.append(f"frequency_range must rise from above 0, got {low} to {high}")
        numbers = {name: getattr(self, name) for name in ("prompt_offset", "gamma", "beta", "center")}
        wrong.extend(f"{name} must be finite, got {x}" for name, x in numbers.items() if not math.isfinite(x))
        if self.positive and min(self.gamma, self.beta) <= 0:
            wrong.append(f"gamma and beta must be positive, got {self.gamma} and {self.beta}")
        if self.center < 0:
            wrong.append(f"center must not be negative, got {self.center}")
        if list(self.buckets) != sorted(set(self.buckets)) or min(self.buckets, default=1) < 1:
            wrong.append(f"buckets must rise from at least 1, got {list(self.buckets)}")
        if wrong:
            raise ConfigError(*(f"length.{w}" for w in wrong))

    @property
    def encoded(self) -> bool:
        """Whether any part needs the length encoding e."""
        parts = (self.prompts > 0, self.query != "none", self.keys, self.temperature == "encoded")
        return any(parts) or self.head in ("encoding", "film")


_LAIN: dict[str, Any] = {"prompts": 2, "query": "additive", "temperature": "sigmoid"}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "base": {},
    "lain": _LAIN,
    "lain-published": _LAIN
    | {
        "scale": "raw",
        "frequency_range": (1e-4, 1.0),
        "prompt_start": "random",
        "prompt_query": "modulated",
        "keys": True,
        "modulation_start": "random",
        "beta": 0.01,
        "positive": False,
        "learn_center": True,
    },
    "lain-plus": {
        "prompts": 2,
        "prompt_offset": -3.0,
        "temperature": "sigmoid",
        "head": "loglength",
    },
    "lain-noprompt": _LAIN | {"prompts": 0},
    "lain-notemperature": _LAIN | {"temperature": "none"},
    "lain-noquery": _LAIN | {"query": "none"},
    "loglength": {"head": "loglength"},
    "bucket-temperature": {"temperature": "bucket"},
    "temperature-loglength": {"temperature": "sigmoid", "head": "loglength"},
}


@dataclass
class LengthConfig:
    """A preset, and any field of :class:`LengthOptions` to set otherwise (None: as the preset has it)."""

    preset: Preset = "base"
    scale: Literal["log", "raw"] | None = None
    frequencies: int | None = None
    frequency_range: tuple[float, float] | None = None
    hidden: int | None = None
    prompts: int | None = None
    prompt_start: Literal["zero", "random"] | None = None
    prompt_query: Literal["plain", "modulated"] | None = None
    query: Literal["none", "additive", "multiplicative"] | None = None
    keys: bool | None = None
    modulation_start: Literal["zero", "random"] | None = None
    prompt_offset: float | None = None
    temperature: Literal["none", "sigmoid", "encoded", "bucket"] | None = None
    gamma: float | None = None
    beta: float | None = None
    positive: bool | None = None
    center: float | None = None
    learn_center: bool | None = None
    head: Literal["none", "loglength", "encoding", "film"] | None = None
    buckets: tuple[int, ...] | None = None
    branches: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check the outcome at once."""
        self.resolve()

    def resolve(self) -> LengthOptions:
        """The preset with the fields set here on top."""
        if self.preset not in PRESETS:
            raise ConfigError(f"length.preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        own = {f.name: getattr(self, f.name) for f in fields(LengthOptions)}
        return LengthOptions(**{**PRESETS[self.preset], **{k: v for k, v in own.items() if v is not None}})


@dataclass(frozen=True, eq=False)
class Affine:
    """W h + b of each sample, made when it is asked for.

    Encoding and prompts come out of layers that are much narrower before than behind, and what reads
    them is linear; M (W h + b) = (M W) h + M b then costs the width of h alone.

    Args:
        hidden: The samples' h.
        weight: W; further dimensions in front mean several vectors per sample.
        bias: b.
    """

    hidden: Float[Tensor, "samples hidden"]
    weight: Float[Tensor, "*several width hidden"]
    bias: Float[Tensor, "*several width"]

    @cached_property
    def value(self) -> Float[Tensor, "samples *several width"]:
        """W h + b."""
        out = nn.functional.linear(self.hidden, self.weight.flatten(0, -2), self.bias.flatten())
        return out.view(len(out), *self.bias.shape)

    def through(self, matrix: Float[Tensor, "out width"]) -> Affine:
        """M (W h + b)."""
        return Affine(self.hidden, matrix @ self.weight, self.bias @ matrix.T)


class SpectralLengthEncoder(nn.Module):
    """The length as a vector: e = MLP(LayerNorm(Linear([sin(l w), cos(l w)]))).

    Source: LAIN, spectral length encoder. The paper writes l = L; ours is log(1 + L) by default,
    and the frequencies w, learned, start geometrically spaced (the paper does not say).

    Args:
        width: Width d of the encoding.
        frequencies: Number d_f of frequencies.
        frequency_range: Smallest and largest starting frequency.
        hidden: Hidden width of the MLP.
    """

    def __init__(
        self, *, width: int, frequencies: int, frequency_range: tuple[float, float], hidden: int
    ) -> None:
        super().__init__()
        low, high = (math.log(f) for f in frequency_range)
        self.frequency = nn.Parameter(torch.linspace(low, high, frequencies).exp())
        self.project = nn.Linear(2 * frequencies, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, scaled: Float[Tensor, " samples"]) -> Affine:
        """The encodings of scaled lengths."""
        angle = scaled[:, None] * self.frequency
        spectrum = torch.cat([angle.sin(), angle.cos()], dim=1)
        first, activation, last = self.mlp
        assert isinstance(last, nn.Linear)
        return Affine(activation(first(self.norm(self.project(spectrum)))), last.weight, last.bias)


class LengthPrompt(nn.Module):
    """Prompt behaviours of a length: P = reshape(MLP(e)) in R^{k x d}.

    Source: LAIN, length-conditioned prompting. Ours starts the last layer at zero by default, so
    that prompts begin as neutral behaviours.

    Args:
        width: Width d of a behaviour.
        prompts: Number k of prompts.
        hidden: Hidden width of the MLP.
        start: ``zero`` or ``random`` start of the last layer.
        offset: Start of the learned number added to the prompts' logits; 0 for none.
    """

    def __init__(
        self,
        *,
        width: int,
        prompts: int,
        hidden: int,
        start: Literal["zero", "random"],
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset)) if offset else None
        self.prompts = prompts
        last = nn.Linear(hidden, prompts * width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), last)
        if start == "zero":
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, encoding: Affine) -> Affine:
        """The prompts of each sample."""
        first, activation, last = self.mlp
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        hidden = activation(encoding.through(first.weight).value + first.bias)
        return Affine(hidden, *(torch.unflatten(x, 0, (self.prompts, -1)) for x in (last.weight, last.bias)))


class LengthModulation(nn.Module):
    """One branch's attention bent by the length: Q' = W_q [Q; e], K' = W_k [K; e], logits / tau.

    W_q [Q; e] = W_q1 Q + W_q2 e: the backbone's own projection stays W_q1, this module adds the
    half on e. Source: LAIN, length-modulated attention; ``multiplicative``, ``bucket`` and the zero
    start are ours.

    Args:
        width: Width of e.
        attention: Width of the space in which the branch compares query and keys.
        options: Which parts are on.
    """

    def __init__(self, *, width: int, attention: int, options: LengthOptions) -> None:
        super().__init__()
        self.center: Tensor
        self.options = options
        self.query_weight = nn.Linear(width, attention, bias=False) if options.query != "none" else None
        self.key_weight = nn.Linear(width, attention, bias=False) if options.keys else None
        for layer in (self.query_weight, self.key_weight):
            if layer is not None and options.modulation_start == "zero":
                nn.init.zeros_(layer.weight)
        self.temperature_weight = None
        if options.temperature == "bucket":
            self.temperature_weight = nn.Parameter(torch.zeros(len(options.buckets) + 1))
        elif options.temperature == "encoded":
            self.temperature_weight = nn.Parameter(torch.zeros(width))
        elif options.temperature == "sigmoid":
            start = [options.gamma, options.beta]
            if options.positive:
                start = [math.log(math.expm1(value)) for value in start]
            self.temperature_weight = nn.Parameter(torch.tensor(start))
            center = scale_length(torch.tensor(options.center), options.scale, torch.get_default_dtype())
            if options.learn_center:
                self.center = nn.Parameter(center)
            else:
                self.register_buffer("center", center)

    def query(
        self, query: Float[Tensor, "samples attention"], encoding: Affine
    ) -> Float[Tensor, "samples attention"]:
        """Q' of projected queries Q."""
        if self.query_weight is None:
            return query
        shift = encoding.through(self.query_weight.weight).value
        return query + shift if self.options.query == "additive" else query * (1 + shift)

    def temperature(
        self,
        length: Int[Tensor, " samples"],
        scaled: Float[Tensor, " samples"],
        encoding: Affine | None,
    ) -> Float[Tensor, " samples"]:
        """Tau of each sample."""
        assert self.temperature_weight is not None
        if self.options.temperature == "encoded" and encoding is not None:
            return encoding.through(self.temperature_weight[None]).value[:, 0].exp()
        if self.options.temperature == "bucket":
            border = torch.tensor(self.options.buckets, device=length.device)
            return self.temperature_weight[torch.bucketize(length, border, right=True)].exp()
        weight = (
            nn.functional.softplus(self.temperature_weight)
            if self.options.positive
            else self.temperature_weight
        )
        gamma, beta = weight.unbind()
        return 1 + gamma * torch.sigmoid(-beta * (scaled - self.center))


def scale_length(
    length: Num[Tensor, "*samples"], scale: Literal["log", "raw"], dtype: torch.dtype
) -> Float[Tensor, "*samples"]:
    """What the method sees of a length: log(1 + L), or L itself."""
    length = length.to(dtype)
    return torch.log1p(length) if scale == "log" else length


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
        bends = options.query != "none" or options.keys or options.temperature != "none"
        self.modulation = nn.ModuleDict(
            {
                branch: LengthModulation(width=width, attention=branches[branch], options=options)
                for branch in self.on
                if bends and branches[branch]
            }
        )

    @property
    def head_width(self) -> int:
        """Width of what the head is told (see :meth:`LengthState.head`)."""
        if self.options.head == "loglength":
            return 1
        return self.encoder.project.out_features if self.encoder and self.options.head != "none" else 0

    def forward(self, length: Int[Tensor, " samples"], dtype: torch.dtype) -> LengthState:
        """What there is to say about a batch's true lengths, in the backbone's number format."""
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
        """The branch's query, bent."""
        modulation = self._modulation(branch)
        return (
            query if modulation is None or self.encoding is None else modulation.query(query, self.encoding)
        )

    def key_shift(self, branch: str) -> Float[Tensor, "samples attention"] | None:
        """What the length adds to every key of a sample: W_k2 e."""
        modulation = self._modulation(branch)
        if modulation is None or modulation.key_weight is None or self.encoding is None:
            return None
        return self.encoding.through(modulation.key_weight.weight).value

    def temperature(self, branch: str) -> Float[Tensor, " samples"] | None:
        """What the branch's logits are divided by."""
        modulation = self._modulation(branch)
        if modulation is None or modulation.temperature_weight is None:
            return None
        return modulation.temperature(self.length, self.scaled, self.encoding)

    def head(self) -> Float[Tensor, "samples head_width"] | None:
        """What the prediction head is told about the length."""
        kind = self.adapter.options.head
        if kind == "none":
            return None
        if kind == "loglength":
            return (torch.log1p(self.length.to(self.scaled.dtype)) - math.log1p(100))[:, None]
        return None if self.encoding is None else self.encoding.value
