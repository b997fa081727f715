"""The commands that write and check negatives: ``causalneg generate`` and ``causalneg verify``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from common.cli import report
from common.config import load
from common.errors import ConfigError

if TYPE_CHECKING:
    from causalneg.generation.config import GenerateConfig, JudgeConfig

C = TypeVar("C")

RULES = ("rules", "naive")
"""Writers without a model; ``--backend`` takes them too."""

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)

_OPTIONS = (
    click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
    click.option("--config", type=click.Path(path_type=Path), help="YAML file of settings."),
    click.option("--model", help="Language model: a name or a folder; short for backend.model=..."),
    click.option("--endpoint", "endpoints", multiple=True, help="URL of a server with it; may be repeated."),
    click.option("--profile", help="Corpus profile: generic, nq, triviaqa, hotpotqa, mmarco or a text file."),
    click.option("--language", help="Language of the corpus.  [default: detected]"),
    click.option("--judge", help="Who has the last word: llm or cross-encoder."),
    click.option("--max-failed", type=float, help="Share of pairs or verdicts that may fail.  [.5]"),
    click.option("--skip-bad", is_flag=True, help="Leave out malformed lines instead of stopping."),
    click.option("--force", is_flag=True, help="Replace OUT, whatever it is, unless it is read."),
)
_BESIDE = (".rejected.jsonl", ".voices.jsonl")


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a file of settings, overrides, and options for the frequent ones."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _load(cls: type[C], given: dict[str, Any], **more: Any) -> C:
    """The settings; options and overrides win over the file."""
    from causalneg.generation.config import RENAMED

    short = {
        **more,
        "backend.name": given["backend"],
        "backend.model": given["model"],
        "backend.endpoints": list(given["endpoints"]) or None,
        "profile": given["profile"],
        "language": given["language"],
        "judge.name": given["judge"],
        "max_failed": given["max_failed"],
    }
    # JSON is YAML in which a model named 1e3 stays a text.
    overrides = [f"{key}={json.dumps(value)}" for key, value in short.items() if value is not None]
    return load(cls, given["config"], [*overrides, *given["overrides"]], renamed=RENAMED)


def _refuse_unused(config: JudgeConfig, asks: bool, given: dict[str, Any]) -> None:
    """Refuse options of a language model that nobody asks."""
    from causalneg.generation.sets import takes

    if asks or (config.judge is not None and takes(config.judge, "backend")):
        return
    named = [f"--{name}" for name in ("backend", "model") if given[name]]
    named += ["--endpoint"] if given["endpoints"] else []
    if named:
        raise ConfigError(f"{', '.join(named)}: no language model is asked; take --writer llm or --judge llm")


def _generate_config(given: dict[str, Any], artifact: float | None) -> GenerateConfig:
    from causalneg.generation.config import GenerateConfig
    from causalneg.generation.sets import takes

    writer = given.pop("writer")
    if given["backend"] in RULES:
        if writer not in (None, given["backend"]):
            raise ConfigError(f"--backend: {given['backend']} is a writer; leave --writer {writer} out")
        writer, given["backend"] = given["backend"], None
    if writer is None and given["backend"] is not None:
        writer = "llm"
    more = {"writer.name": writer, "writer.artifact": artifact}
    config = _load(GenerateConfig, given, **more)
    _refuse_unused(config, takes(config.writer, "backend"), given)
    return config


@click.command()
@click.argument("data", type=FOLDER)
@click.argument("mined", type=FILE)
@click.argument("out", type=FILE)
@_settings
@click.option("--writer", help="Who writes: rules, naive or llm.  [default: rules; with --backend: llm]")
@click.option("--backend", help="Where a language model runs: openai, vllm or transformers.")
@click.option("--artifact", type=float, help="Style of rules and naive, 0 to 1.")
@click.option("--both-voices", is_flag=True, help="Rewrite passages too, into OUT.voices.jsonl.")
@click.option("--voices-per-query", default=5, show_default=True, help="Mined ones rewritten per query.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many queries.")
@click.option("--seed", default=0, show_default=True, help="Decides every choice of the writer.")
@click.option("--retry-failed", is_flag=True, help="Try pairs again whose failure is in the journal.")
@click.option("--status", is_flag=True, help="Show how far OUT is, and do nothing.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--dry-run", is_flag=True, help="Print what would be done for the first pair.")
def generate(
    data: Path,
    mined: Path,
    out: Path,
    artifact: float | None,
    both_voices: bool,
    voices_per_query: int,
    limit: int | None,
    seed: int,
    retry_failed: bool,
    status: bool,
    skip_bad: bool,
    force: bool,
    quiet: bool,
    dry_run: bool,
    **given: Any,
) -> None:
    r"""Write negatives for the queries of the training set MINED, verify them, and write a set OUT.

    First an analysis of why the positive answers the query, then up to three negatives that violate one
    requirement each. What the verifier rejects goes to OUT.rejected.jsonl with the reason; the data card
    is OUT.card.md. What is finished is kept in OUT.journal: a killed run goes on where it stopped. If more
    pairs fail than --max-failed allows, OUT is not written.

    \b
    A language model writes with --backend vllm (in this process), openai (servers) or transformers:
      causalneg generate DATA MINED OUT --backend openai --endpoint http://127.0.0.1:8000/v1 --model NAME
    The key of a server is read from the environment variable OPENAI_API_KEY. Some further settings:
      budget.tokens=5000000       budget.money=20 budget.prompt_price=.1 budget.completion_price=.4
      backend.data_parallel=4     backend.adapter=FOLDER   backend.highest_concurrency=512
      writer.temperature=.7       writer.limits.candidates=5   wandb=offline
      judge_backend.name=openai   judge_backend.model=OTHER judge_backend.endpoints=[URL]
    --dry-run prints both prompts for the first pair.
    """
    if status:
        from causalneg.generation.status import status as show
        from common.files import beside

        click.echo(show(beside(out, ".journal")))
        return
    from causalneg.data.outputs import check_set_output
    from causalneg.generation.sets import generate_set, preview_set

    config = _generate_config(given, artifact)
    if dry_run:
        click.echo(preview_set(data, mined, config, seed=seed, skip_bad=skip_bad, report=report))
        return
    check_set_output(out, data=data, inputs=[mined], also=_BESIDE, force=force)
    card = generate_set(
        data, mined, out, config, both_voices=both_voices, voices_per_query=voices_per_query, limit=limit,
        retry_failed=retry_failed, seed=seed, skip_bad=skip_bad, progress=not quiet, report=report,
    )  # fmt: skip
    click.echo(card)
    click.echo(out)


@click.command()
@click.argument("data", type=FOLDER)
@click.argument("examples", type=FILE)
@click.argument("out", type=FILE)
@_settings
@click.option("--backend", help="Where a judge runs that is a language model: openai, vllm or transformers.")
@click.option("--dry-run", is_flag=True, help="Print what would be done and write nothing.")
def verify(
    data: Path, examples: Path, out: Path, skip_bad: bool, force: bool, dry_run: bool, **given: Any
) -> None:
    """Check the written negatives of a training set EXAMPLES and keep the valid ones in OUT.

    Valid: not equal or near-equal to a positive, the requirement really violated, no answer (by truth on
    the world, by heuristics elsewhere), of the corpus's length and language, no duplicate. Rejected ones
    go to OUT.rejected.jsonl with the reason. With a --judge, a language model (--model) or a cross-encoder
    (judge.model=...), what the verifier lets pass needs the judge's word too.
    """
    from causalneg.data.outputs import check_set_output
    from causalneg.generation.config import JudgeConfig
    from causalneg.generation.sets import verify_set
    from common.config import to_yaml
    from common.files import beside

    if given["judge"] is None and (given["model"] or given["endpoints"] or given["backend"]):
        given["judge"] = "llm"
    config = _load(JudgeConfig, given)
    _refuse_unused(config, False, given)
    if dry_run:
        rejected = beside(out, ".rejected.jsonl")
        click.echo(to_yaml({"data": data, "examples": examples, "out": out, "rejected": rejected}), nl=False)
        return
    check_set_output(out, data=data, inputs=[examples], also=_BESIDE[:1], force=force)
    click.echo(verify_set(data, examples, out, config, skip_bad=skip_bad, report=report))
    click.echo(out)


@click.command()
@click.argument("data", type=FOLDER)
@click.argument("examples", type=FILE)
@click.argument("out", type=FILE)
@_settings
@click.option("--backend", help="Where a judge runs that is a language model: openai, vllm or transformers.")
@click.option("--cross-encoder", help="Name or folder of a cross-encoder that judges, and leaves its scores.")
@click.option("--add", is_flag=True, help="Those that answer become positives, instead of being dropped.")
@click.option("--truth", help="Split with all true positives, to measure the judge with.")
def relabel(
    data: Path,
    examples: Path,
    out: Path,
    cross_encoder: str | None,
    add: bool,
    truth: str | None,
    skip_bad: bool,
    force: bool,
    **given: Any,
) -> None:
    """Judge the mined negatives of a training set EXAMPLES; those that answer are dropped, into OUT.

    By a language model (--model, --endpoint) or a cross-encoder, whose scores OUT then holds too, for the
    loss terms kl and margin-mse. OUT with the ending .relabel.json has the counts and, with --truth, the
    precision and recall of the judge.
    """
    from causalneg.data.outputs import check_set_output
    from causalneg.generation.config import JudgeConfig
    from causalneg.generation.relabel import relabel_set

    more: dict[str, Any] = {}
    if cross_encoder is not None:
        if given["judge"] not in (None, "cross-encoder"):
            raise ConfigError(f"--cross-encoder: judges itself; leave --judge {given['judge']} out")
        given["judge"], more = "cross-encoder", {"judge.model": cross_encoder}
    elif given["judge"] is None and (given["model"] or given["endpoints"] or given["backend"]):
        given["judge"] = "llm"
    config = _load(JudgeConfig, given, **more)
    _refuse_unused(config, False, given)
    check_set_output(out, data=data, inputs=[examples], force=force)
    counts = relabel_set(data, examples, out, config, add=add, truth=truth, skip_bad=skip_bad, report=report)
    click.echo(counts.to_markdown())
    click.echo(out)


@click.command()
@click.argument("data", type=FOLDER)
@click.argument("mined", type=FILE)
@click.argument("out", type=FOLDER)
@click.option("--minutes", type=float, help="Time to train.  [default: 20]")
@click.option("--device", help="Where to train.  [default: a GPU if there is one]")
@click.option("--tokens", type=int, help="Tokens in a batch.  [default: 1024]")
@click.option("--rate", type=float, help="Highest learning rate.  [default: 0.002]")
@click.option("--artifact", type=float, help="Strength of the simulated writer's manner.  [default: 0]")
@click.option("--seed", type=int, help="Of weights and order.  [default: 0]")
def teach(data: Path, mined: Path, out: Path, **given: Any) -> None:
    """Teach a small language model the world DATA; writes a model folder OUT.

    The rules write for the training questions of the world, with the mined set MINED as candidates; the
    model learns these conversations from scratch. Killed and called again, it goes on where it was.
    """
    from causalneg.generation.writers.taught import Lesson
    from causalneg.generation.writers.taught import teach as teach_model

    lesson = Lesson(**{name: value for name, value in given.items() if value is not None})
    report(json.dumps(teach_model(data, mined, out, lesson), indent=1))
    click.echo(out)
