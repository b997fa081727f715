"""LAIN: a length-adaptive interest network for click-through prediction, on any backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lain.serving.scorer import Scorer as Scorer

__all__ = ["Scorer"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name == "Scorer":
        from lain.serving.scorer import Scorer

        return Scorer
    raise AttributeError(f"module 'lain' has no attribute '{name}'")
