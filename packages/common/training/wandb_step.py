"""Weights & Biases without a training: a step that makes something, and files as artifacts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BackendError
from common.redact import redact, redacted_command_line
from common.training.task import Artifact
from common.training.wandb_mode import Mode, suggest_nothing

if TYPE_CHECKING:
    from wandb import Settings
    from wandb.sdk.wandb_run import Run


def quiet_settings(mode: Mode) -> Settings:
    """W&B's settings for a run that prints nothing and leaves the console alone.

    Args:
        mode: Where it goes.
    """
    import wandb

    suggest_nothing()
    return wandb.Settings(silent=True, console="off", reinit="create_new", mode=mode)


def log_artifact(run: Run, artifact: Artifact, *, upload: bool = False) -> None:
    """Keep what a run read or made: a reference to each file with its checksum, or the files themselves.

    Args:
        run: The W&B run.
        artifact: What it is.
        upload: Whether the files are sent, too.
    """
    from wandb import Artifact as WandbArtifact

    name = re.sub(r"[^\w.-]+", "-", artifact.name)[:120]
    kept = WandbArtifact(name=name, type=artifact.type, metadata=redact(dict(artifact.facts)))
    for path in artifact.paths:
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
        for file in files:
            inside = file.name if path.is_file() else file.relative_to(path).as_posix()
            if any(part.startswith(".") for part in inside.split("/")):
                continue
            if upload:
                kept.add_file(str(file), name=inside, policy="immutable")
            else:
                kept.add_reference(file.resolve().as_uri(), name=inside)
    if artifact.made:
        run.log_artifact(kept)
    else:
        # use_artifact() refuses to work offline; this is what it does online with one that is not logged yet.
        run._log_artifact(kept, use_after_commit=True, is_user_created=True)


@contextmanager
def tracked_step(
    mode: Mode,
    *,
    project: str,
    job_type: str,
    out: Path,
    config: Mapping[str, Any],
    tags: Sequence[str] = (),
    artifacts: Callable[[], Sequence[Artifact]] = tuple,
) -> Iterator[Callable[[Mapping[str, float]], None] | None]:
    """Track the making of a file as a W&B run of its own, in ``wandb/`` beside the file.

    Args:
        mode: Where it goes; ``disabled`` does nothing.
        project: W&B project.
        job_type: What is done: ``mine``, ``generate``.
        out: The file that is made.
        config: Settings of the step.
        tags: What the run is found by.
        artifacts: What was read and made, asked for at the end where the file is there.

    Yields:
        What takes figures while it works; None where nothing is tracked.

    Raises:
        BackendError: W&B cannot be had.
    """
    if mode == "disabled":
        yield None
        return
    import wandb

    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with redacted_command_line():
            run = wandb.init(
                project=project, name=out.stem, dir=out.parent, mode=mode, job_type=job_type,
                tags=list(tags), config=redact(dict(config)), settings=quiet_settings(mode),
            )  # fmt: skip
    except wandb.Error as error:
        raise BackendError(f"wandb: {error}; log in, or take wandb=offline") from None
    try:
        yield lambda figures: run.log(dict(figures))
        for artifact in artifacts() if out.is_file() else ():
            log_artifact(run, artifact)
    finally:
        run.finish()
