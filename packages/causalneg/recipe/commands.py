"""The commands ``causalneg recipe`` and ``causalneg questions``."""

from __future__ import annotations

from pathlib import Path

import click

from causalneg.options import FOLDER, PATH, SKIP_BAD
from common.cli import report

ENDPOINT = click.option("--endpoint", help="URL of a server whose model writes.  [default: rules write]")
MODEL = click.option("--model", help="Name of that model, as the server has it.")
SEED = click.option("--seed", default=0, show_default=True, help="Decides every random choice.")


@click.command()
@click.argument("source", type=PATH)
@click.argument("out", type=FOLDER)
@click.option("--minutes", type=float, default=15.0, show_default=True, help="Time that it may take, about.")
@click.option(
    "--encoder",
    help="Encoder to start from: a folder, a run, a name.  [default: minilm where it is installed]",
)
@ENDPOINT
@MODEL
@click.option(
    "--questions", type=click.IntRange(min=1), default=2000, show_default=True,
    help="Most questions, where SOURCE has none to train on.",
)  # fmt: skip
@SEED
def recipe(
    source: Path,
    out: Path,
    minutes: float,
    encoder: str | None,
    endpoint: str | None,
    model: str | None,
    questions: int,
    seed: int,
) -> None:
    r"""Make an encoder for SOURCE, a data set or a plain folder of documents, and say how good it is.

    \b
    questions   where there are none to train on, by rules or by a model
    plan        what fits into --minutes on this machine
    mine        hard negatives, positive-aware, by the start encoder
    write       negatives that break one requirement, verified; by rules or by a model
    train, evaluate (beside BM25 and the start encoder), export, page

    Killed or called again, it goes on: steps whose inputs have not changed are skipped. OUT then holds
    model/ (SentenceTransformer loads it), ladder.md, page.html, and all that led there.
    """
    from causalneg.recipe.recipe import Recipe, follow

    asked = Recipe(
        source=source, out=out, minutes=minutes, encoder=encoder, endpoint=endpoint, model=model,
        questions=questions, seed=seed,
    )  # fmt: skip
    outcome = follow(asked, report=report)
    if outcome.ladder is not None:
        click.echo(outcome.ladder.to_markdown())
        for line in outcome.ladder.words():
            click.echo(line)
    click.echo(outcome.page)
    click.echo(outcome.model)


@click.command()
@click.argument("source", type=PATH)
@click.argument("out", type=FOLDER)
@ENDPOINT
@MODEL
@click.option("--profile", default="generic", show_default=True, help="Corpus profile, for the model.")
@click.option(
    "--per-document",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Of a model, each passage.",
)
@click.option("--most", type=click.IntRange(min=1), default=2000, show_default=True, help="Most in all.")
@click.option(
    "--test-share",
    type=float,
    default=0.2,
    show_default=True,
    help="Share of the documents held out as test.",
)
@SEED
@SKIP_BAD
def questions(
    source: Path,
    out: Path,
    endpoint: str | None,
    model: str | None,
    profile: str,
    per_document: int,
    most: int,
    test_share: float,
    seed: int,
    skip_bad: bool,
) -> None:
    """Ask questions that the documents of SOURCE answer, and write a data set OUT with them.

    By rules: the rare words of a sentence. With --endpoint and --model a language model asks as people do;
    what is finished is in OUT.journal. Kept are those that are no duplicates, of some length, do not speak of
    the passage, and whose passage BM25 finds again.
    """
    from causalneg.generation.questions import make_questions
    from causalneg.llm import BACKENDS
    from common.errors import ConfigError

    if (endpoint is None) != (model is None):
        raise ConfigError("questions: a server and the name of its model go together (--endpoint, --model)")
    backend = None
    if endpoint is not None:
        backend = BACKENDS.component("openai", model=model, endpoints=[endpoint]).build(report=report)
    try:
        counts = make_questions(
            source, out, backend=backend, profile=profile, per_document=per_document, most=most,
            test_share=test_share, seed=seed, skip_bad=skip_bad, report=report,
        )  # fmt: skip
    finally:
        if backend is not None:
            backend.close()
    click.echo(counts)
    click.echo(out)
