"""A training set written by the language model that a study taught, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from causalneg.generation.writers.taught import CONTEXT, LIMITS
from common.errors import BackendError


def python_of(name: str, how: Mapping[str, Any]) -> Path:
    """The Python that the taught model writes in.

    Raises:
        BackendError: There is no such environment.
    """
    python = Path(str(how["engine"])) / "bin" / "python" if "engine" in how else Path(sys.executable)
    if not python.is_file():
        raise BackendError(
            f"sets.{name}.engine: there is no {python}; `make test-vllm` makes it, "
            "or leave engine out and transformers writes, which takes several times as long"
        )
    return python


def write_taught(path: Path, how: Mapping[str, Any], data: Path, source: Path, model: Path) -> None:
    """Let the taught model write a set, as the command does it; killed and called again, it goes on.

    Raises:
        BackendError: The command failed; it has said why.
    """
    engine = "engine" in how
    python = python_of(path.stem, how)
    chosen: dict[str, Any] = {f"writer.limits.{name}": value for name, value in vars(LIMITS).items()}
    chosen["writer.temperature"] = how.get("temperature", 0.7)
    texts = int(how.get("batch", 64))
    if engine:
        chosen |= {"backend.sequences": texts, "backend.context": CONTEXT, "backend.attempts": 2}
        # It has learnt JSON with a space after colon and comma, and is not held to another layout.
        spaces = "{backend: xgrammar, disable_any_whitespace: false}"
        chosen["backend.engine"] = (
            f"{{dtype: float32, enforce_eager: true, structured_outputs_config: {spaces}}}"
        )
    else:
        chosen |= {"backend.batch": texts, "backend.attempts": 2}
    command = [str(python), "-m", "causalneg.cli", "generate", str(data), str(source)]
    command += [str(path), "--backend", "vllm" if engine else "transformers", "--model", str(model)]
    # How often a model fails that was taught for minutes is a result, which the data card holds.
    command += ["--max-failed", "1", *(f"{name}={value}" for name, value in chosen.items())]
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    environment = {**quiet, **os.environ}
    # What it prints goes where progress goes: the table alone is the study's output.
    if subprocess.run(command, env=environment, stdout=2, check=False).returncode:
        raise BackendError(f"{path}: the model could not write it, see above; what it has is kept")
