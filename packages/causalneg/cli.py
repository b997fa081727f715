"""The ``causalneg`` command: make or mine data, write negatives, check them, train, evaluate, diagnose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from causalneg.data import FORMATS
from causalneg.generation.commands import generate, relabel, teach, verify
from causalneg.options import (
    DEVICES,
    DRY_RUN,
    FILE,
    FOLDER,
    FORCE,
    LANGUAGE,
    PATH,
    QUIET,
    SEARCH,
    SKIP_BAD,
    TRUST,
    reading_options,
)
from causalneg.recipe.commands import questions, recipe
from causalneg.serving.commands import encode, index, search, serve
from common.cli import Group, report
from common.config import load as load_config
from common.config import to_yaml
from common.config.command import settings_command
from common.dashboard import dashboard_options
from common.errors import ConfigError
from common.metrics.retrieval import MEASURES, parse_measure
from common.report.page.command import PAGE as PAGE_FILE
from common.report.page.command import show_page
from common.report.tables import markdown_table
from common.study.command import report_options, study_options

if TYPE_CHECKING:
    from causalneg.encoders.saved import Reading
    from causalneg.search import Search


def _report_cut(texts: int) -> None:
    """Report how many texts an encoder could not read to their end."""
    if texts:
        report(f"{texts} texts were longer than the encoder takes; their ends were not read")


@click.group(cls=Group)
def main() -> None:
    r"""Dense retrieval with hard negatives that violate one requirement of the query each.

    \b
    A first run, on the embedded world:
      causalneg world data/world
      causalneg mine data/world sets/bm25.jsonl --count 18
      causalneg generate data/world sets/bm25.jsonl sets/rules.jsonl --backend rules
      causalneg train experiments/retrieval/train.yaml data=data/world 'encoder={name: static}'
      causalneg check data/world --run runs/RUN
    On your own data: a BEIR folder (corpus.jsonl, queries.jsonl, qrels/train.tsv) in place of data/world.
    """


@main.command()
@click.argument("out", type=FOLDER)
@click.option("--passages", default=20_000, show_default=True, help="Passages of the corpus.")
@click.option("--questions", default=8_000, show_default=True, help="Questions, over all splits.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes, on every machine.")
@DRY_RUN
def world(out: Path, passages: int, questions: int, seed: int, dry_run: bool) -> None:
    """Make a world of typed facts with passages, questions and exact relevance, as a BEIR folder OUT.

    OUT/mixed is the same corpus with half of its passages in the simulated writer's style. Since every
    fact is known, so are the false negatives of every mined set and the truth of every written text.
    """
    from causalneg.world import WorldConfig, make_world

    config = WorldConfig(passages=passages, questions=questions, seed=seed)
    if dry_run:
        click.echo(to_yaml(config), nl=False)
        return
    make_world(config, out)
    click.echo(out)


@main.command()
@click.argument("data", type=FOLDER)
@click.argument("out", type=FILE)
@click.option("--split", default="train", show_default=True, help="Queries to mine for.")
@click.option("--encoder", type=FOLDER, help="Encoder folder or run to mine with, instead of BM25.")
@click.option("--count", default=15, show_default=True, help="Negatives per query.")
@click.option("--depth", default=200, show_default=True, help="Documents looked at per query.")
@click.option("--first-rank", default=1, show_default=True, help="First rank to take from.")
@click.option("--last-rank", type=int, help="Last rank to take from.  [default: depth]")
@click.option("--pick", type=click.Choice(["top", "random"]), default="top", show_default=True)
@click.option("--max-score", type=float, help="Keep below this score.")
@click.option("--min-score", type=float, help="Keep above this score.")
@click.option("--margin", type=float, help="Keep this far below the positive's score.")
@click.option("--relative-margin", type=float, help="Keep below this share of the positive's score (.95).")
@click.option("--against", type=click.Choice(["one", "all", "lowest"]), default="one", show_default=True)
@click.option("--near-duplicate", default=0.6, show_default=True, help="Share of it that is too much.")
@click.option("--distinct", type=float, help="The same between the negatives of one query.")
@click.option("--truth", help="Split with all true positives, to count false negatives with.")
@click.option("--cache", type=FOLDER, help="Where embeddings are kept.  [default: DATA/.cache]")
@SEARCH
@LANGUAGE
@TRUST
@DEVICES
@click.option("--seed", default=0, show_default=True, help="Decides the random picks.")
@click.option(
    "--wandb",
    type=click.Choice(["disabled", "offline", "online"]),
    default="disabled",
    show_default=True,
    help="Keep the set in W&B, for its lineage.",
)
@SKIP_BAD
@FORCE
@QUIET
@DRY_RUN
def mine(
    data: Path,
    out: Path,
    split: str,
    encoder: Path | None,
    count: int,
    depth: int,
    first_rank: int,
    last_rank: int | None,
    pick: str,
    max_score: float | None,
    min_score: float | None,
    margin: float | None,
    relative_margin: float | None,
    against: str,
    near_duplicate: float,
    distinct: float | None,
    truth: str | None,
    cache: Path | None,
    search: Search | None,
    language: str | None,
    trust_remote_code: bool,
    devices: tuple[str, ...],
    seed: int,
    wandb: Any,
    skip_bad: bool,
    force: bool,
    quiet: bool,
    dry_run: bool,
) -> None:
    """Find hard negatives in the corpus of DATA and write a training set OUT (JSONL).

    By BM25, or by an encoder. Known positives of the split and near-duplicates of them are never taken.
    The report, OUT with the ending .report.json, has ranks, scores, exclusions by rule and, with
    --truth, the false negatives. The same command gives the same set on every machine.
    """
    from causalneg.commands import mine_set
    from causalneg.data.outputs import check_set_output
    from causalneg.mining import MiningRules

    chosen = {
        "count": count,
        "depth": depth,
        "first_rank": first_rank,
        "last_rank": last_rank,
        "pick": pick,
        "max_score": max_score,
        "min_score": min_score,
        "margin": margin,
        "relative_margin": relative_margin,
        "against": against,
        "near_duplicate": near_duplicate,
        "distinct": distinct,
    }
    rules = load_config(MiningRules, None, base=chosen)
    if dry_run:
        click.echo(to_yaml(rules), nl=False)
        return
    check_set_output(out, data=data, inputs=[encoder] if encoder else [], force=force)
    mined = mine_set(
        data, out, split=split, rules=rules, encoder=encoder, truth=truth, cache=cache or data / ".cache",
        search=search, language=language, devices=devices, trust_remote_code=trust_remote_code, seed=seed,
        wandb=wandb, skip_bad=skip_bad,
        report=report, progress=not quiet,
    )  # fmt: skip
    click.echo(mined.to_markdown())
    _report_cut(mined.texts_cut)
    click.echo(out)


main.add_command(generate)
main.add_command(verify)
main.add_command(relabel)
main.add_command(teach)
for _command in (encode, index, search, serve, recipe, questions):
    main.add_command(_command)


@main.command()
@click.argument("config", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@SKIP_BAD
@click.option("--dry-run", is_flag=True, help="Print the resolved config and train nothing.")
def train(config: Path, overrides: tuple[str, ...], skip_bad: bool, dry_run: bool) -> None:
    """Train the encoder that CONFIG describes; overrides change single keys (loss.temperature=0.02).

    Killed at any moment, the same command goes on where it stopped. The last line printed is the run
    folder: config.yaml, record.json, metrics.csv, checkpoints/, encoder/, eval/ and diagnosis.json. Before
    it stands the ladder (BM25, start, trained) where that costs little; ladder=false leaves it out.
    """
    from causalneg.commands import propose_validation, training_ladder
    from causalneg.training.config import load_train_config
    from causalneg.training.run import Library, RetrievalTask
    from common.training.run import train as train_task

    settings = load_train_config(config, overrides)
    if dry_run:
        click.echo(to_yaml(settings), nl=False)
        return
    library = Library()
    run = train_task(RetrievalTask(settings, skip_bad=skip_bad, library=library))
    if not run.trained:
        report(f"{run.folder}: was finished on {run.record.finished}; nothing to do")
    _report_cut(run.record.notes["texts_cut"])
    propose_validation(settings, report)
    training_ladder(settings, run, library, skip_bad=skip_bad, report=report)
    click.echo(run.folder)


@main.command()
@click.argument("run", type=FOLDER, required=False)
@click.option("--data", type=FOLDER, required=True, help="Any BEIR folder.")
@click.option(
    "--split", "splits", multiple=True, default=["test"], show_default=True, help="May be repeated."
)
@click.option("--encoder", type=FOLDER, help="An encoder's folder, or minilm, instead of a RUN.")
@click.option("--bm25", is_flag=True, help="BM25 instead of an encoder.")
@click.option("--depth", default=100, show_default=True, help="Documents kept per query.")
@click.option(
    "--measure", "measures", multiple=True, default=MEASURES, show_default=True,
    help="Such as ndcg@10, recall@100, mrr@10, map, precision@5, success@1; may be repeated.",
)  # fmt: skip
@click.option(
    "--ignore-identical/--keep-identical", default=None,
    help="Documents that are the query itself are no hits.  [default: where ids coincide, as in BEIR]",
)  # fmt: skip
@SEARCH
@LANGUAGE
@reading_options
@click.option("--batch-tokens", type=click.IntRange(min=1), help="Tokens per forward pass.")
@click.option(
    "--cache", type=FOLDER,
    help="Where embeddings are kept; a killed call goes on.  [default: DATA/.cache for a transformer]",
)  # fmt: skip
@TRUST
@DEVICES
@click.option("--out", type=FOLDER, help="Where eval/ is made.  [default: RUN, or runs/NAME of the encoder]")
@SKIP_BAD
@QUIET
@DRY_RUN
def evaluate(
    run: Path | None,
    data: Path,
    splits: tuple[str, ...],
    encoder: Path | None,
    bm25: bool,
    depth: int,
    measures: tuple[str, ...],
    ignore_identical: bool | None,
    search: Search | None,
    language: str | None,
    reading: Reading,
    batch_tokens: int | None,
    cache: Path | None,
    trust_remote_code: bool,
    devices: tuple[str, ...],
    out: Path | None,
    skip_bad: bool,
    quiet: bool,
    dry_run: bool,
) -> None:
    """Rank the corpus of a BEIR folder with a trained RUN, an --encoder or --bm25.

    Leaves eval/DATASET-SPLIT/run.trec, metrics.json and per_query.json, and prints the metrics. Tokens,
    pooling and prompts are those of the encoder's folder; what is read otherwise is said and recorded.
    Nothing is written into that folder.
    """
    from causalneg.commands import evaluate_splits, evaluation_folder

    chosen = [x for x in (run, encoder, bm25 or None) if x is not None]
    if len(chosen) != 1 and not (search and not chosen):
        raise ConfigError("evaluate: name one of a RUN, --encoder PATH or --bm25")
    search = search or ("bm25" if bm25 else "exact")
    source = run or encoder
    if source is None and reading.chosen():
        raise ConfigError(f"evaluate: {', '.join(reading.chosen())}: only an encoder has that")
    home = out or run or (evaluation_folder(encoder, reading) if encoder else Path("runs") / "bm25")
    for measure in measures:
        parse_measure(measure)
    if dry_run:
        asked = {"data": data, "splits": list(splits), "depth": depth, "index": search, "out": home / "eval"}
        click.echo(to_yaml({"retriever": source or search, **asked}), nl=False)
        return
    found = evaluate_splits(
        data, splits, encoder=source, search=search, depth=depth, measures=measures,
        language=language, reading=reading, batch_tokens=batch_tokens, cache=cache,
        ignore_identical=ignore_identical, devices=devices, trust_remote_code=trust_remote_code,
        skip_bad=skip_bad, report=report, progress=not quiet,
    )  # fmt: skip
    _report_cut(int(found[0].notes.get("texts_cut", 0)) if found else 0)
    for one in found:
        folder = one.save(home / "eval")
        rows = [[name, f"{value:.4f}"] for name, value in one.metrics.mean.items()]
        click.echo(markdown_table([f"{one.name} {one.split}", f"{one.metrics.queries} queries"], rows))
        click.echo(folder)


@main.command()
@click.argument("data", type=FOLDER)
@click.option("--run", type=FOLDER, help="A trained run: its start encoder and what became of it.")
@click.option(
    "--encoder", type=FOLDER, help="A start encoder: a folder, or minilm (the default without a run)."
)
@click.option("--split", help="Queries to check on.  [default: test, else dev]")
@LANGUAGE
@reading_options
@click.option("--cache", type=FOLDER, help="Where embeddings are kept.  [default: as for evaluate]")
@TRUST
@DEVICES
@SKIP_BAD
@QUIET
@DRY_RUN
def check(
    data: Path,
    run: Path | None,
    encoder: Path | None,
    split: str | None,
    language: str | None,
    reading: Reading,
    cache: Path | None,
    trust_remote_code: bool,
    devices: tuple[str, ...],
    skip_bad: bool,
    quiet: bool,
    dry_run: bool,
) -> None:
    """Show the ladder on DATA: BM25, the start encoder, the trained one, with intervals over queries.

    Says in words what is below BM25, and whether the queries suffice to tell.
    """
    from causalneg.commands import check as climb

    if dry_run:
        asked = {"data": data, "run": run, "encoder": encoder, "split": split, **reading.chosen()}
        click.echo(to_yaml(asked), nl=False)
        return
    ladder = climb(
        data, split=split, run=run, encoder=encoder, reading=reading, language=language, cache=cache,
        devices=devices, trust_remote_code=trust_remote_code, skip_bad=skip_bad, report=report,
        progress=not quiet,
    )  # fmt: skip
    click.echo(ladder.to_markdown())
    for line in ladder.words():
        click.echo(line)


@main.command()
@click.argument("data", type=FOLDER)
@click.option("--run", type=FOLDER, help="A trained run, beside its start encoder.")
@click.option("--encoder", type=FOLDER, help="An encoder's folder, or minilm.")
@click.option("--split", default="test", show_default=True, help="Queries of the world DATA.")
@click.option(
    "--set", "examples", type=FILE, help="Set of verified written negatives, where DATA is no world."
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many queries.")
@LANGUAGE
@reading_options
@TRUST
@DEVICES
@click.option("--seed", default=0, show_default=True, help="Of the rewriting.")
@SKIP_BAD
def violations(
    data: Path,
    run: Path | None,
    encoder: Path | None,
    split: str,
    examples: Path | None,
    limit: int | None,
    language: str | None,
    reading: Reading,
    trust_remote_code: bool,
    devices: tuple[str, ...],
    seed: int,
    skip_bad: bool,
) -> None:
    """Show whether a retriever ranks answer > one requirement violated > two violated, on DATA.

    On the embedded world answers are rewritten, and what a text violates is counted by reading it back. On
    real text the verified written negatives of a --set violate one. Shares of pairs in the right order, a
    half for equal scores, with intervals over queries; chance is .5.
    """
    from causalneg.commands import violations as measure
    from causalneg.evaluation.violations import violations_table

    found = measure(
        data, split=split, run=run, encoder=encoder, examples=examples, reading=reading, limit=limit,
        language=language, devices=devices, trust_remote_code=trust_remote_code, seed=seed,
        skip_bad=skip_bad, report=report,
    )  # fmt: skip
    click.echo(
        violations_table(f"{data.resolve().name} {split if examples is None else examples.name}", found)
    )


@main.command()
@click.argument("run", type=FOLDER)
@click.option("--examples", type=FILE, multiple=True, help="Sets to measure on instead of the run's own.")
@TRUST
@SKIP_BAD
@DRY_RUN
def diagnose(
    run: Path, examples: tuple[Path, ...], trust_remote_code: bool, skip_bad: bool, dry_run: bool
) -> None:
    """Show whether a trained RUN scores by who wrote a text instead of by whether it is relevant.

    Same-document style shift, source AUC from score and embedding, mutual information of source and
    score, each beside its value for the encoder before training. Leaves diagnosis.json in the run folder.
    """
    from causalneg.training.run import diagnose_run

    if dry_run:
        click.echo(to_yaml({"run": run, "examples": list(examples), "out": run / "diagnosis.json"}), nl=False)
        return
    found = diagnose_run(
        run, examples=examples, trust_remote_code=trust_remote_code, skip_bad=skip_bad, report=report
    )
    trained, untrained = (one.figures() for one in found)
    rows = [[name, f"{value:.4f}", f"{untrained[name]:.4f}"] for name, value in trained.items()]
    click.echo(markdown_table(["measure", "trained", "untrained"], rows))
    click.echo(run / "diagnosis.json")


@main.command()
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["encoder", *FORMATS]),
    default="encoder",
    show_default=True,
    help="encoder: a run's encoder for SentenceTransformer(OUT); the others: a training set.",
)
@click.option(
    "--from", "given", type=click.Choice(FORMATS), default="own", show_default=True,
    help="Form of the training set SOURCE.",
)  # fmt: skip
@click.option("--negatives", type=int, help="Keep the first so many of each query.")
@click.option("--data", type=FOLDER, help="BEIR folder that passages without a text are read from.")
@TRUST
@SKIP_BAD
@FORCE
@DRY_RUN
def export(
    source: Path,
    out: Path,
    kind: str,
    given: str,
    negatives: int | None,
    data: Path | None,
    trust_remote_code: bool,
    skip_bad: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Hand the encoder of a run, or a training set, to other libraries; or take theirs in.

    Says in plain words what the other format cannot carry. --from tevatron --format own reads a set of
    Tevatron's.
    """
    from causalneg.data import export_examples, import_examples, read_dataset
    from causalneg.data.outputs import check_set_output

    if dry_run:
        asked = {"source": source, "from": given, "format": kind, "negatives": negatives, "out": out}
        click.echo(to_yaml(asked), nl=False)
        return
    if kind == "encoder":
        from causalneg.encoders import find_encoder

        whole, place = source.resolve(), out.resolve()
        if place == whole or place in whole.parents or (whole in place.parents and place.exists()):
            raise ConfigError(f"{out}: is read by this very command; write to another folder")
        encoder = find_encoder(source, trust_remote_code=trust_remote_code)
        encoder.export_sentence_transformers(out, replace=force)
        click.echo(out)
        return
    check_set_output(out, data=data, inputs=[source], own=kind == "own", force=force)
    dataset = read_dataset(data, splits=[], skip_bad=skip_bad, report=report) if data is not None else None
    examples = import_examples(source, format=given, skip_bad=skip_bad, report=report)
    for loss in export_examples(examples, out, format=kind, dataset=dataset, negatives=negatives):
        report(loss)
    click.echo(out)


main.add_command(settings_command("causalneg.training.config:TrainConfig"))


@main.command()
@study_options
def study(**options: Any) -> int:
    r"""Train the arms of a study and print what generated negatives do to the encoder.

    FILE is a YAML file, or the name of one in experiments/retrieval.

    \b
    run     do the runs that are not done yet and print the table (by default)
    report  make table, plots and page again from the runs that are done
    tune    run the study's grid, ranked on the validation split

    Leaves page.html, results.json, table.md, frame.parquet (one row per run and metric) and plots in
    runs/retrieval-STUDY, beside data, sets and start encoder, which are made once; every run has a folder of
    its own. Stop it at any time: the same command goes on.
    """
    from causalneg.study.kind import RETRIEVAL
    from common.study.command import run_study

    return run_study(RETRIEVAL, **options)


@main.command("report")
@report_options
def report_page(**options: Any) -> int:
    """Write one HTML page that shows a run or a study: the answer, plots, tables, where they come from.

    RUN_OR_STUDY is a folder, or the name or YAML file of a study that has been run in runs/retrieval-NAME.
    The page asks for nothing from outside; by default it is page.html in the folder. The line printed is its
    path.
    """
    from causalneg.study.kind import RETRIEVAL
    from common.study.command import run_report

    return run_report(RETRIEVAL, **options)


@main.command()
@dashboard_options
def dashboard(**options: Any) -> None:
    """Make the W&B workspace and report of this method's runs, and print where they are.

    Both come from one definition, which --dry-run prints. Sending them needs a key (WANDB_API_KEY or `wandb
    login`) and the extra: pip install '.[dashboards]'.
    """
    from causalneg.dashboard import DASHBOARD
    from common.dashboard import run_dashboard

    run_dashboard(DASHBOARD, **options)


@main.command()
@click.argument("source", metavar="SET_OR_CORPUS", type=PATH)
@click.option("--data", type=FOLDER, help="BEIR folder that a set's passages without a text are read from.")
@click.option("--examples", default=5, show_default=True, type=click.IntRange(0), help="Examples to show.")
@click.option("--seed", default=0, show_default=True, help="Decides which examples.")
@PAGE_FILE
def show(source: Path, data: Path | None, examples: int, seed: int, page: Path | None) -> None:
    """Show what is in a training set or a corpus, as text and, with --page, as one HTML file.

    Of a set (a JSONL file): length of the negatives and their overlap with query and positive by source,
    counts of strategies, requirements and verdicts, random examples. Of a corpus (a BEIR folder): lengths,
    positives, overlaps, copies and leaks between splits, random queries.
    """
    from causalneg.evaluation.show import corpus_page, set_page

    if source.is_dir():
        show_page(corpus_page(source, examples=examples, seed=seed), page)
    else:
        show_page(set_page(source, data=data, examples=examples, seed=seed), page)


if __name__ == "__main__":
    main()
