"""Whether W&B tracks a run, and whether anything leaves this machine: decided before anything is built."""

from __future__ import annotations

import netrc
import os
from typing import Literal, cast
from urllib.parse import urlparse

from common.training.config import TrackingConfig, WandbMode

Mode = Literal["offline", "online", "disabled"]
KEY, MODE, SERVER = "WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"
"""The variables of the environment that W&B itself reads."""


def wandb_mode(asked: WandbMode) -> Mode:
    """What a setting comes to in this environment.

    ``auto`` is ``online`` where WANDB_API_KEY is set, else ``offline``; WANDB_MODE decides before that. A key
    that an earlier login left in the home directory sends nothing by itself: only ``online`` uses it.

    Args:
        asked: The setting.
    """
    if asked != "auto":
        return asked
    named = os.environ.get(MODE, "")
    if named in ("offline", "online", "disabled"):
        return cast(Mode, named)
    return "online" if os.environ.get(KEY) else "offline"


def tracking_mistakes(config: TrackingConfig) -> list[str]:
    """What is wrong with the settings in this environment; empty where nothing is.

    Args:
        config: The settings.
    """
    if wandb_mode(config.wandb) != "online" or os.environ.get(KEY) or _logged_in():
        return []
    return [
        f"tracking.wandb: online needs a key; set {KEY}, log in with `wandb login`, or take offline and send "
        "the run later with `wandb sync`"
    ]


def _logged_in() -> bool:
    """Whether `wandb login` left a key for the server."""
    host = urlparse(os.environ.get(SERVER) or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def suggest_nothing() -> None:
    """Have W&B leave out its suggestion of Weave, which it prints beside ``openai``, silent or not."""
    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
