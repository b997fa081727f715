"""The settings of a language model on the command line, and what the commands do with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.config import load
from common.errors import DataError

if TYPE_CHECKING:
    from causalneg.data import Report
    from causalneg.data.schema import Example
    from causalneg.generation.model_set import ModelSettings

MODEL_BACKENDS = ("vllm", "openai", "transformers")
"""Backends with a language model behind them, as :data:`causalneg.generation.model_set.MODEL_BACKENDS`."""

_OPTIONS = (
    click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
    click.option("--config", type=click.Path(path_type=Path), help="YAML file of the model's settings."),
    click.option("--model", help="Language model: a name or a folder; short for model=..."),
    click.option("--endpoint", "endpoints", multiple=True, help="URL of a server with it; may be repeated."),
    click.option("--profile", help="Corpus profile: generic, nq, triviaqa, hotpotqa, mmarco or a text file."),
    click.option("--judge", type=click.Choice(["llm", "cross-encoder"]), help="Who has the last word."),
)


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the settings of a language model: a file, overrides, and options for the frequent ones.

    Args:
        command: Takes ``overrides``, ``config``, ``model``, ``endpoints``, ``profile`` and ``judge``.
    """
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def model_settings(given: dict[str, Any]) -> ModelSettings:
    """The settings of a language model; options and overrides win over the file.

    Args:
        given: The values of :func:`model_options` by name.

    Raises:
        ConfigError: All mistakes in them.
    """
    from causalneg.generation.model_set import ModelSettings

    short = {
        "model": given["model"],
        "server.endpoints": list(given["endpoints"]) or None,
        "profile": given["profile"],
        "judge.kind": given["judge"],
    }
    # JSON is YAML in which a model named 1e3 stays a text.
    overrides = [f"{key}={json.dumps(value)}" for key, value in short.items() if value is not None]
    return load(ModelSettings, given["config"], [*overrides, *given["overrides"]])


def generate_model_set(
    data: Path,
    mined: Path,
    out: Path,
    *,
    backend: str,
    settings: ModelSettings,
    both_voices: bool = False,
    voices_per_query: int = 5,
    limit: int | None = None,
    retry_failed: bool = False,
    seed: int = 0,
    skip_bad: bool = False,
    tell: Report | None = None,
    progress: bool = False,
    show_first: bool = False,
) -> str:
    """Write negatives for the queries of a mined set with a language model, verify them, write what is valid.

    Args:
        data: BEIR folder.
        mined: Training set whose queries, positives and negatives (as candidates) are the input.
        out: File to write; see :func:`causalneg.generation.model_set.write_model_set` for those beside it.
        backend: Where the model runs: ``vllm``, ``openai`` or ``transformers``.
        settings: How it writes.
        both_voices: Whether positives and mined negatives are rewritten too.
        voices_per_query: How many mined negatives of each query are rewritten.
        limit: Only the first so many queries.
        retry_failed: Whether pairs are tried again whose failure is in the journal.
        seed: Decides every choice of the writer.
        skip_bad: Whether malformed lines are left out.
        tell: Told how many were.
        progress: Whether to show a progress bar.
        show_first: Return both prompts for the first pair, and write nothing.

    Returns:
        The data card in Markdown, or the prompts.

    Raises:
        BackendError: The model cannot be had; what is finished is in the journal.
        ConfigError: A setting is out of range.
        DataError: The input cannot be read, or the journal is open elsewhere or cannot be written.
    """
    from causalneg.commands import find_world
    from causalneg.data import read_dataset, read_examples
    from causalneg.generation.model_set import preview_prompts, write_model_set

    dataset = read_dataset(data, splits=[], skip_bad=skip_bad, report=tell)
    source: list[Example] = read_examples(mined, skip_bad=skip_bad, report=tell)[:limit]
    if not source:
        raise DataError(f"{mined}: holds no examples, so there is nothing to write negatives for")
    if show_first:
        return preview_prompts(source, dataset, settings)
    return write_model_set(
        source,
        dataset,
        out,
        backend=backend,
        settings=settings,
        world=find_world(data),
        both_voices=both_voices,
        voices_per_query=voices_per_query,
        retry_failed=retry_failed,
        seed=seed,
        progress=progress,
    )


def judge_set(
    data: Path,
    examples: Path,
    out: Path,
    *,
    backend: str,
    settings: ModelSettings,
    skip_bad: bool = False,
    tell: Report | None = None,
) -> str:
    """Verify the written negatives of a set and ask a judge; what both call valid goes to ``out``.

    Args:
        data: BEIR folder.
        examples: Training set with written negatives.
        out: File to write; the rejected ones lie beside it with the reason, and the judge's journal.
        backend: Where a judge runs that is a language model.
        settings: Who judges.
        skip_bad: Whether malformed lines are left out.
        tell: Told how many were.

    Returns:
        The counts of verifier and judge in Markdown.

    Raises:
        BackendError: The judge cannot be had; what is finished is in its journal.
        ConfigError: A setting is out of range.
        DataError: The input cannot be read, or the journal is open elsewhere or cannot be written.
    """
    from causalneg.commands import beside, find_world
    from causalneg.data import read_dataset, read_examples, write_examples
    from causalneg.generation.model_set import review_set
    from causalneg.generation.verification.heuristics import verify

    dataset = read_dataset(data, splits=[], skip_bad=skip_bad, report=tell)
    found = read_examples(examples, skip_bad=skip_bad, report=tell)
    checked = verify(found, dataset, world=find_world(data))
    reviewed = review_set(checked, dataset, out, backend=backend, settings=settings)
    write_examples(beside(out, ".rejected.jsonl"), reviewed.checked.rejected)
    write_examples(out, reviewed.checked.kept)
    return f"{reviewed.checked.report.to_markdown()}\n\n{reviewed.to_markdown()}"
