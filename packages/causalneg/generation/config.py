"""All that decides a written or judged set, as files, ``key=value`` and Python give it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

from causalneg.generation.verification import JUDGES
from causalneg.generation.verification.judge import Judge
from causalneg.generation.writers import WRITERS
from causalneg.generation.writers.base import Writer
from causalneg.llm import BACKENDS
from causalneg.llm.budget import Budget
from causalneg.llm.chat import ChatBackend
from common.config import Component

RENAMED = {
    **dict.fromkeys(("server", "vllm", "local"), "backend"),
    "model": "backend.model",
    "limits": "writer.limits",
    "temperature": "writer.temperature",
    "top_p": "writer.top_p",
    "judge.kind": "judge.name",
    "judge.model": "judge_backend.model",
    "judge.endpoints": "judge_backend.endpoints",
}
"""What a setting is called now, by its earlier name."""


@dataclass(kw_only=True)
class JudgeConfig:
    """Who judges written texts.

    Args:
        backend: Where the language model runs that writers and judges ask.
        judge: Who has the last word after the verifier; null for nobody. Passages that a language model
            rewrote are always judged, by itself if nobody is named.
        judge_backend: Where the judge's model runs, if it is another one.
        profile: Name of a corpus profile (generic, nq, triviaqa, hotpotqa, mmarco), or path of a text file.
        budget: What a set may cost, its judge included.
        max_failed: Share of the pairs, or of the judge's questions, that may fail; more is an error.
    """

    backend: Annotated[Component[ChatBackend], BACKENDS] = field(
        default_factory=lambda: BACKENDS.component("openai")
    )
    judge: Annotated[Component[Judge], JUDGES] | None = None
    judge_backend: Annotated[Component[ChatBackend], BACKENDS] | None = None
    profile: str = "generic"
    budget: Budget = field(default_factory=Budget)
    max_failed: Annotated[float, Ge(0), Le(1)] = 0.5


@dataclass(kw_only=True)
class GenerateConfig(JudgeConfig):
    """Who writes, and who judges.

    Args:
        writer: Who writes.
        wandb: Whether the progress goes to W&B.
        project: W&B project.
    """

    writer: Annotated[Component[Writer], WRITERS] = field(default_factory=lambda: WRITERS.component("rules"))
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "causalneg"
