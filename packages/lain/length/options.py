"""The choices of the method: every option, and the presets that name combinations of them."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from common.config import checked
from common.errors import ConfigError, suggest
from lain.length.temperature import TEMPERATURES

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


@checked
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
            Q' = W_q1 Q * (1 + W_q2 e), which acts differently on different targets; not in the paper.
        keys: Also K' = W_k [K; e], as published. All keys of a history share e, so under a softmax
            this cancels exactly (but for prompts scored with another query); it acts in DIN, whose
            weights are not normalised.
        modulation_start: ``zero`` or ``random`` start of W_q2 and W_k2.
        prompt_offset: Start of a learned number added to the prompts' logits; below 0, prompts hold
            little of the attention until they have learned something. 0: no such number.
        temperature: What the logits are divided by: ``none``, or one of
            :data:`~lain.length.temperature.TEMPERATURES`: ``sigmoid``, as published, ``encoded``, ``bucket``.
        gamma: Start of gamma, the extra softness for the shortest histories.
        beta: Start of beta, per unit of the scaled length.
        positive: Keep beta and gamma positive (softplus), so that short means softer.
        center: L0 in behaviours.
        learn_center: Whether L0 is learned.
        head: What conditions the prediction head: nothing, the scaled ``loglength`` (a control), or the
            ``encoding`` e through its own zero-started weights, or ``film``: e scales and shifts the
            head's first layer, from the identity (neither is in the paper).
        buckets: Bucket borders in behaviours, for the ``bucket`` temperature.
        branches: Branches that are conditioned; empty means all.
    """

    scale: Literal["log", "raw"] = "log"
    frequencies: Annotated[int, Ge(1)] = 16
    frequency_range: tuple[float, float] = (0.1, 10.0)
    hidden: Annotated[int, Ge(1)] = 32
    prompts: Annotated[int, Ge(0)] = 0
    prompt_start: Literal["zero", "random"] = "zero"
    prompt_query: Literal["plain", "modulated"] = "plain"
    query: Literal["none", "additive", "multiplicative"] = "none"
    keys: bool = False
    modulation_start: Literal["zero", "random"] = "zero"
    prompt_offset: float = 0.0
    temperature: str = "none"
    gamma: float = 1.0
    beta: float = 1.0
    positive: bool = True
    center: Annotated[float, Ge(0)] = 100.0
    learn_center: bool = False
    head: Literal["none", "loglength", "encoding", "film"] = "none"
    buckets: tuple[int, ...] = (50, 100, 200)
    branches: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no single range refuses."""
        wrong = []
        low, high = self.frequency_range
        if not 0 < low <= high < math.inf:
            wrong.append(f"frequency_range: must rise from above 0, got {low} to {high}")
        numbers = {name: getattr(self, name) for name in ("prompt_offset", "gamma", "beta", "center")}
        wrong.extend(
            f"{name}: must be finite, got {x}" for name, x in numbers.items() if not math.isfinite(x)
        )
        if self.positive and min(self.gamma, self.beta) <= 0:
            wrong.append(f"gamma: gamma and beta must be positive, got {self.gamma} and {self.beta}")
        if list(self.buckets) != sorted(set(self.buckets)) or min(self.buckets, default=1) < 1:
            wrong.append(f"buckets: must rise from at least 1, got {list(self.buckets)}")
        if self.temperature != "none" and self.temperature not in TEMPERATURES:
            there = ["none", *TEMPERATURES]
            hint = suggest(self.temperature, there) or f"; there are {', '.join(there)}"
            wrong.append(f"temperature: there is no temperature '{self.temperature}'{hint}")
        ConfigError.raise_if(wrong)

    @property
    def encoded(self) -> bool:
        """Whether any part needs the length encoding e."""
        temperature = self.temperature != "none" and _reads_encoding(self.temperature)
        parts = (self.prompts > 0, self.query != "none", self.keys, temperature)
        return any(parts) or self.head in ("encoding", "film")


def _reads_encoding(temperature: str) -> bool:
    return bool(getattr(TEMPERATURES[temperature], "encoded", False))


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


class _Preset:
    """What :class:`LengthConfig` does, whatever options there are."""

    preset: Preset

    def __post_init__(self) -> None:
        """Check the outcome at once."""
        self.resolve()

    def resolve(self) -> LengthOptions:
        """The preset with the options set here on top.

        Raises:
            ConfigError: There is no such preset, or the outcome makes no model.
        """
        if self.preset not in PRESETS:
            raise ConfigError(f"preset: must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        own = {f.name: getattr(self, f.name) for f in fields(LengthOptions)}
        return LengthOptions(**{**PRESETS[self.preset], **{k: v for k, v in own.items() if v is not None}})


if TYPE_CHECKING:

    class LengthConfig(_Preset):
        """A preset, and any option of :class:`LengthOptions` to set otherwise (None: as in the preset)."""

        def __init__(self, preset: Preset = "base", **options: Any) -> None: ...

else:
    _hints = typing.get_type_hints(LengthOptions, include_extras=True)
    LengthConfig = make_dataclass(
        "LengthConfig",
        [
            ("preset", Preset, "base"),
            *(
                (f.name, _hints[f.name] | None, field(default=None, kw_only=True))
                for f in fields(LengthOptions)
            ),
        ],
        bases=(_Preset,),
        namespace={"__module__": __name__},
    )
    LengthConfig.__doc__ = (
        (LengthOptions.__doc__ or "")
        .replace(
            "Every choice of the method, spelled out.",
            "A preset, and any option to set otherwise (null: as the preset has it).",
        )
        .replace("Args:\n", "Args:\n        preset: Named combination of options.\n")
    )
