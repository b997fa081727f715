"""The ``lain`` command: make or prepare data, train, evaluate, predict, diagnose."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from common.cli import Group, report
from common.config import load as load_config
from common.config import read_component, to_yaml
from common.config.command import settings_command
from common.dashboard import dashboard_options
from common.errors import ConfigError, DataError, suggest
from common.report.page.command import PAGE, show_page
from common.report.tables import markdown_table
from common.study.command import report_options, study_options

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group(cls=Group)
def main() -> None:
    r"""Click-through prediction for users whose histories are short and long at once.

    \b
    From a log of your own to a model that can be served:
      lain recipe clicks.csv mine
    A first run, on the embedded world:
      lain world data/world
      lain train experiments/ctr/train.yaml data=data/world
      lain evaluate runs/RUN
    On your own impressions, described by a small YAML file:
      lain prepare reczoo my-parquet-folder data/mine --schema mine.yaml
    """


@main.command()
@click.argument("out", type=FOLDER)
@click.option("--users", default=3000, show_default=True, help="Users; rows scale in proportion.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes, on every machine.")
@click.option("--dry-run", is_flag=True, help="Print the resolved settings and write nothing.")
def world(out: Path, users: int, seed: int, dry_run: bool) -> None:
    """Simulate users whose true click probability is known, and prepare them in OUT.

    Interests drift, items differ in popularity and quality, some clicks are noise, and history lengths
    are heavy-tailed: over half of the users have fewer than 100 behaviours but give a seventh of the
    rows. Since the true probability is kept, evaluations also show the best possible figures.
    """
    from common.machine import out_of_memory
    from lain.world import WorldConfig, make_world

    config = WorldConfig(seed=seed).for_users(users)
    if dry_run:
        click.echo(to_yaml(config), nl=False)
        return
    with out_of_memory(f"lower --users={users}"):
        make_world(config, out)
    click.echo(out)


@main.command()
@click.argument("format")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=FOLDER, required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--schema", type=click.Path(path_type=Path), help="YAML naming the columns (log, reczoo).")
@click.option("--download", is_flag=True, help="Fetch a public data set into SOURCE first.")
@click.option("--propose", is_flag=True, help="Print a schema for the log in SOURCE and write nothing.")
@click.option(
    "--from",
    "before",
    type=FOLDER,
    metavar="RUN",
    help="Take over schema, ids and scales of RUN; new values get ids behind (log).",
)
@click.option("--quiet", is_flag=True, help="No progress lines.")
def prepare(
    format: str,
    source: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    schema: Path | None,
    download: bool,
    propose: bool,
    before: Path | None,
    quiet: bool,
) -> None:
    r"""Turn a log of your own or a public data set in SOURCE into a prepared one in OUT.

    \b
    log        CSV, TSV or Parquet of events (one file, a folder, a pattern in quotes), and a --schema that
               says which columns are what; --propose prints one from the files
    reczoo     train/valid/test.parquet, user_info.parquet, item_info.parquet, and a --schema
    kuairand   val/test.parquet, user_sequences, item_features, user_features; setting valid_days=1
    movielens  ratings.csv and movies.csv; a rating of 4 and more counts as a click;
               setting fractions=[.8,.1,.1]

    and, without a schema, the public logs ebnerd, ebnerd-week, mind, kuairand-raw, taobao-user-behavior,
    taobao-ad, taobao-ad-x1, movielens-1m, kuaivideo-x1, microvideo-x1.

    Everything streams: memory does not grow with the number of rows. What looks like a leak is reported.
    """
    from lain.formats import FORMATS
    from lain.formats import prepare as prepare_format
    from lain.formats.download import download as fetch
    from lain.formats.log.propose import propose as propose_schema

    if propose:
        if format != "log" or out is not None:
            raise click.UsageError("--propose is for: lain prepare log SOURCE --propose")
        click.echo(propose_schema(source), nl=False)
        return
    if out is None:
        raise click.UsageError("Missing argument 'OUT'.")
    given = {"name": format, "schema": schema, "before": before}
    given = {key: value for key, value in given.items() if value is not None}
    chosen = read_component(FORMATS, given, "format", overrides)
    if download:
        fetch(format, source)
    prepare_format(chosen, source, out, progress=not quiet)
    click.echo(out)


@main.command()
@click.argument("data", type=FOLDER)
def verify(data: Path) -> None:
    """Read every byte of the prepared data set DATA and compare it with its fingerprint.

    Opening a data set checks sizes, types, shapes and small files; training does this, once per call.
    """
    from lain.data.store import Store

    store = Store.open(data)
    store.verify()
    click.echo(store.fingerprint)


@main.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.argument("out", type=FOLDER)
@click.option(
    "--minutes",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Time for all of it.",
)
@click.option(
    "--schema", type=click.Path(path_type=Path, exists=True), help="YAML instead of a proposed one."
)
@click.option("--backbone", default="twin", show_default=True, help="Backbone of both models.")
@click.option("--workers", type=click.IntRange(1), help="Runs at a time; by default 2, or 1 on one core.")
def recipe(
    log: Path, out: Path, minutes: float, schema: Path | None, backbone: str, workers: int | None
) -> None:
    """From a LOG to a model that can be served, in one command.

    LOG is CSV, TSV or Parquet of events (one file, a folder, a pattern in quotes), or a folder with the files
    of a public log. Proposes a schema (OUT/log.yaml) and says what it assumed, prepares, chooses a learning
    rate on validation rows, trains a base model and LAIN, and compares them by history length on test rows.

    Asks nothing. Edit OUT/log.yaml and give the same command again to go on from it; stopped at any moment,
    the same command goes on where it was. Leaves OUT/page.html, the better model by validation rows in
    OUT/model, and the study in OUT/study. The last line printed serves the model.
    """
    from lain.backbones import BACKBONES
    from lain.study.recipe import recipe as follow

    if backbone not in BACKBONES.names():
        raise ConfigError(
            f"backbone: '{backbone}' is not one of {', '.join(BACKBONES.names())}"
            f"{suggest(backbone, BACKBONES.names())}"
        )
    found = follow(
        log, out, minutes=minutes, schema=schema, backbone=backbone, workers=workers, report=report
    )
    click.echo(found.words)
    click.echo(f"the better model on validation rows: {found.arm}, {found.model}")
    click.echo(f"the comparison: {found.page}")
    click.echo(f"lain serve {found.model}")


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--from", "start", type=FOLDER, metavar="RUN", help="Start from the best weights of RUN, on older data."
)
@click.option(
    "--same-encoding", is_flag=True, help="With --from: ids of both data stand for the same things."
)
@click.option("--dry-run", is_flag=True, help="Print the resolved config and train nothing.")
def train(
    config: Path, overrides: tuple[str, ...], start: Path | None, same_encoding: bool, dry_run: bool
) -> None:
    """Train the model that CONFIG describes; overrides change single keys (length.preset=lain).

    With --from, `lain prepare log NEWER OUT --from RUN` has prepared the data: new users, items and
    categories then have ids behind the old ones, whose vectors stay. `lain train RUN/config.yaml data=OUT
    --from RUN` goes on with all else as it was.

    Killed at any moment, the same command goes on where it stopped. The last line printed is the run
    folder: config.yaml, record.json, metrics.csv, attention.json, checkpoints/ and
    predictions/test.parquet.
    """
    from common.training import again

    plain = config.is_file() and not dry_run and start is None
    asked = again.request(config, overrides, "lain") if plain else None
    if asked is not None and "torch" not in sys.modules:
        before = again.finished_before(asked, config, overrides, _inputs)
        if before is not None:
            report(f"{before[0]}: was finished on {before[1]}; nothing to do")
            click.echo(before[0])
            return
    from common.training.run import train as train_task
    from lain.training.config import RENAMED, TrainConfig
    from lain.training.run import CTRTask

    settings = load_config(TrainConfig, config, overrides, renamed=RENAMED)
    if dry_run:
        click.echo(to_yaml(settings), nl=False)
        return
    run = train_task(CTRTask(settings, start=start, same_encoding=same_encoding))
    if asked is not None:
        again.remember(run.folder, asked)
    if not run.trained:
        report(f"{run.folder}: was finished on {run.record.finished}; nothing to do")
    click.echo(run.folder)


def _inputs(settings: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints of what a run reads, as its record has them."""
    from lain.data.store import Store

    return {"data": Store.open(Path(settings["data"])).fingerprint}


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=FOLDER, required=True, help="Folder of the search.")
@click.option("--space", type=click.Path(path_type=Path), help="YAML of what is searched.")
@click.option("--trials", default=20, show_default=True, type=click.IntRange(1), help="Trials in all.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Time after which none begins.")
def tune(
    config: Path,
    overrides: tuple[str, ...],
    out: Path,
    space: Path | None,
    trials: int,
    minutes: float | None,
) -> None:
    r"""Search for settings of CONFIG, ranked by their best validation.

    \b
    --space names a YAML file of dotted keys, a list of values or a range each:
      train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
      model.top_k: [20, 50, 100]
    Without it learning rate, embedding penalty and width are searched. Trials below the median of the others
    are cut off. Stopped at any moment, the same command goes on; --trials counts those that are done. Test
    rows are not looked at. The last line printed, OUT/best.yaml, is the config of the best: lain train it.
    """
    from lain.study.tune import BEST
    from lain.study.tune import tune as search

    click.echo(search(config, overrides, out, space=space, trials=trials, minutes=minutes, report=report))
    click.echo(out / BEST)


@main.command()
@click.argument("run", type=FOLDER)
@click.option("--split", default="test", show_default=True, help="Split to evaluate on.")
def evaluate(run: Path, split: str) -> None:
    """Score a split with a trained RUN and print its metrics, whole and by history length.

    Leaves predictions/SPLIT.parquet and metrics-SPLIT.json in the run folder. A metric that cannot be
    computed (a bucket with one class only) is null, with its reason beside it.
    """
    from common.files import atomic_write
    from lain.evaluation.predictions import predict as score
    from lain.training.run import load_run

    config, model, data = load_run(run)
    if not data.store.split(split).labelled:
        raise DataError(f"{config.data}: split {split} has no labels; score it with: lain predict {run} DATA")
    predictions = score(model, data.eval_loader(split), data.store.split(split))
    predictions.save(run / "predictions" / f"{split}.parquet")
    found = predictions.metrics(config.buckets)
    content = {"metrics": found.values, "reasons": found.reasons}
    atomic_write(run / f"metrics-{split}.json", json.dumps(content, indent=1) + "\n")
    rows = [
        [name, "null" if value is None else f"{value:.5g}", found.reasons.get(name, "")]
        for name, value in found.values.items()
    ]
    click.echo(markdown_table(["metric", "value", "why null"], rows))


@main.command()
@click.argument("run", type=FOLDER)
@click.argument("data", metavar="LOG|DATA", type=click.Path(path_type=Path))
@click.argument("target", metavar="[OUT]", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option(
    "--history", type=click.Path(path_type=Path), help="Log of earlier events that histories are made of."
)
@click.option("--split", default="test", show_default=True, help="Split of DATA to score.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write; in predictions/ of RUN by default.",
)
@click.option("--same-encoding", is_flag=True, help="The ids of DATA are those RUN was trained on.")
@click.option("--force", is_flag=True, help="Replace OUT, whatever it is, unless it is read.")
@click.option("--quiet", is_flag=True, help="No progress lines.")
def predict(
    run: Path,
    data: Path,
    target: Path | None,
    history: Path | None,
    split: str,
    out: Path | None,
    same_encoding: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Score new rows with a trained RUN, whose own data are not needed.

    LOG is CSV, TSV or Parquet with the columns of the log that RUN was trained on; labels are not needed.
    Histories are made of --history, and of the labelled rows of LOG where others have no label. New items,
    users and categories count as unknown. Columns of the result, in the order of the log: user, item (as
    they stand there), length, score.

    DATA is another prepared data set. It must have the features RUN was trained on, and its ids must stand
    for the same things: its vocabularies show it, or --same-encoding says it. Columns: user, item, length,
    label, score. The last line printed is the Parquet file.
    """
    from common.files import check_output
    from lain.evaluation.predictions import is_predictions
    from lain.evaluation.predictions import predict as score
    from lain.evaluation.score_log import score_log
    from lain.formats.log.read import find_files
    from lain.training.run import check_encoding, load_model, open_data

    out = target or out
    config, model, record = load_model(run)
    if not (data / "dataset.json").is_file() and (run / "encoding").is_dir():
        if out is None:
            raise click.UsageError("Missing argument 'OUT'.")
        read = [file for log in (data, history) if log is not None for file in find_files(log)]
        own = ("config.yaml", "record.json", "features.json", "checkpoints", "encoding")
        check_output(out, inputs=[*(run / name for name in own), *read], made=is_predictions, force=force)
        notices = score_log(
            model,
            run,
            data,
            out,
            open_rows=lambda rows: open_data(config, rows),
            history=history,
            progress=not quiet,
        )
        for notice in notices:
            report(f"note: {notice}")
        click.echo(out)
        return
    other = open_data(config, data)
    check_encoding(run, record, other.store, same=same_encoding)
    if out is not None:
        check_output(out, inputs=[data], made=is_predictions, force=force)
    out = out or run / "predictions" / f"{data.resolve().name}-{split}.parquet"
    score(model, other.eval_loader(split), other.store.split(split)).save(out)
    click.echo(out)


@main.command()
@click.argument("run", type=FOLDER)
@click.option("--rows", default=1000, show_default=True, type=click.IntRange(1), help="Test rows per bucket.")
def diagnose(run: Path, rows: int) -> None:
    """Show where a trained RUN looks, by history length, and whether its users pull the same way.

    Gini coefficient and normalised entropy of the attention, the share of it that prompts hold, per
    bucket and branch; and the cosine between the gradients of short and of long users. Leaves
    diagnosis.json in the run folder.
    """
    from common.files import atomic_write
    from lain.evaluation import diagnostics
    from lain.training.run import load_run

    config, model, data = load_run(run)
    batches = data.batches("test")
    attention = diagnostics.attention_by_bucket(model, batches, config.buckets, rows=rows)
    cosine = diagnostics.gradient_cosine(model, data.batches("train"), rows=rows)
    content = {"attention": attention, "gradient_cosine": cosine}
    atomic_write(run / "diagnosis.json", json.dumps(content, indent=1) + "\n")
    figures = ("samples", "gini", "entropy", "prompt_mass")
    table = [
        [branch, bucket, *(f"{shape[f]:.4g}" if f in shape else "" for f in figures)]
        for branch, buckets in attention.items()
        for bucket, shape in buckets.items()
    ]
    click.echo(markdown_table(["branch", "bucket", *figures], table))
    click.echo()
    click.echo(
        markdown_table(
            ["gradient of", "cosine of short and long"], [[k, f"{v:.3f}"] for k, v in cosine.items()]
        )
    )


@main.command()
@click.argument("run", type=FOLDER)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Processes.")
@click.option(
    "--store", default="memory", show_default=True, help="Memories of users: memory, FILE.sqlite, redis://..."
)
@click.option(
    "--store-megabytes",
    default=1024,
    show_default=True,
    type=click.IntRange(1),
    help="Bound of that in memory or in a file.",
)
@click.option("--data", type=FOLDER, help="Prepared data, for a run that does not keep its items' features.")
def serve(
    run: Path, host: str, port: int, workers: int, store: str, store_megabytes: int, data: Path | None
) -> None:
    r"""Serve a trained RUN over HTTP; prints the address.

    \b
    POST /encode   {"user": "u1", "history": ["i1", "i2"]}          read a user's history once
    POST /score    {"user": "u1", "candidates": ["i3"], "context": {}}   click probabilities
    GET  /health, /metrics (Prometheus)

    Ids and values are those of the log that RUN was trained on. Keeps nothing but memories of users, which it
    may forget: a user without one is a 404, and the client sends the history again. Several --workers share
    a file or a Redis, in which memories outlive a worker that is killed; it is replaced.
    """
    try:
        from lain.serving.service import serve as serve_run
    except ImportError as error:
        raise ConfigError(
            f"lain serve needs FastAPI and uvicorn ({error}); pip install 'causalneg-lain[serve]'"
        ) from None
    serve_run(
        run,
        host=host,
        port=port,
        workers=workers,
        store=store,
        most_bytes=store_megabytes << 20,
        data=data,
        report=click.echo,
    )


@main.command()
@click.argument("run", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("--data", type=FOLDER, help="Prepared data, for a run that does not keep its items' features.")
def export(run: Path, out: Path, data: Path | None) -> None:
    """Write the model of a trained RUN for other runtimes into the new folder OUT.

    model.onnx and model.pt2 (torch.export) take one user's history and any number of candidates, as plain
    tensors; model.safetensors holds the weights; config, vocabularies and README.md (the model card, with the
    inputs) stand beside. Both programs are compared with RUN itself, to 1e-5, before OUT is there. DIEN has
    no such form.
    """
    from lain.serving.export import export_run

    for line in export_run(run, out, data=data):
        report(line)
    click.echo(out)


main.add_command(settings_command("lain.training.config:TrainConfig"))


@main.command()
@study_options
def study(**options: Any) -> int:
    r"""Train the arms of a study and print how they differ by history length.

    FILE is a YAML file, or the name of one in experiments/ctr.

    \b
    run     do the runs that are not done yet and print the table (by default)
    report  make table, plots and page again from the runs that are done
    tune    run the study's grid, ranked on the validation rows

    Leaves page.html, results.json, table.md, frame.parquet (one row per run and metric) and plots in
    runs/ctr-STUDY, where every run has a folder of its own; the prepared data set lies in data/ beside it.
    Stop it at any time: the same command goes on.
    """
    from common.study.command import run_study
    from lain.study.kind import CTR

    return run_study(CTR, **options)


@main.command("report")
@report_options
def report_page(**options: Any) -> int:
    """Write one HTML page that shows a run or a study: the answer, plots, tables, where they come from.

    RUN_OR_STUDY is a folder, or the name or YAML file of a study that has been run in runs/ctr-NAME. The page
    asks for nothing from outside; by default it is page.html in the folder. The line printed is its path.
    """
    from common.study.command import run_report
    from lain.study.kind import CTR

    return run_report(CTR, **options)


@main.command()
@dashboard_options
def dashboard(**options: Any) -> None:
    """Make the W&B workspace and report of this method's runs, and print where they are.

    Both come from one definition, which --dry-run prints. Sending them needs a key (WANDB_API_KEY or `wandb
    login`) and the extra: pip install '.[dashboards]'.
    """
    from common.dashboard import run_dashboard
    from lain.dashboard import DASHBOARD

    run_dashboard(DASHBOARD, **options)


@main.command()
@click.argument("data", type=FOLDER)
@PAGE
def show(data: Path, page: Path | None) -> None:
    """Show what is in the prepared DATA, as text and, with --page, as one HTML file.

    History lengths, users, rows and clicks by length bucket, clicks over time where rows have times,
    popularity of items, share of new items and users in each split, and checks for leaks.
    """
    from lain.evaluation.show import data_page

    show_page(data_page(data), page)


if __name__ == "__main__":
    main()
