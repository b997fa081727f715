"""LAIN: what a backbone can ask about the length of a history.

The method has three parts, each switchable on its own: a :class:`SpectralLengthEncoder` turns the
true length into a vector, a :class:`LengthPrompt` turns that vector into a few extra behaviours,
and a :class:`LengthModulation` changes a branch's queries, keys and temperature by it. A
:class:`LengthAdapter` holds them; per batch it gives a :class:`LengthState`, and a backbone with a softmax
gets its logits from that by one call of :func:`conditioned_logits`. It knows no backbone, and with
everything off every number is as it was.

Source: LAIN (arXiv 2601.19142). The paper leaves open how the length is scaled, how frequencies,
prompts and modulation start, and where the temperature turns; each is a field of
:class:`LengthOptions` with our measured default, and the preset ``lain-published`` is the literal
reading of the paper's equations.
"""

from lain.length.adapter import LengthAdapter, LengthState
from lain.length.encoder import SpectralLengthEncoder, scale_length
from lain.length.logits import conditioned_logits
from lain.length.modulation import LengthModulation
from lain.length.options import PRESETS, LengthConfig, LengthOptions, Preset
from lain.length.prompt import LengthPrompt
from lain.length.temperature import TEMPERATURES, Temperature

__all__ = [
    "PRESETS",
    "TEMPERATURES",
    "LengthAdapter",
    "LengthConfig",
    "LengthModulation",
    "LengthOptions",
    "LengthPrompt",
    "LengthState",
    "Preset",
    "SpectralLengthEncoder",
    "Temperature",
    "conditioned_logits",
    "scale_length",
]
