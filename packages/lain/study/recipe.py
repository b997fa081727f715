"""From a log to a model that can be served, in one command and a given number of minutes."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from common import config
from common.errors import ConfigError, DataError
from common.files import atomic_folder, atomic_write, locked
from common.study.collect import Run, finished_runs
from common.study.command import run_study
from common.study.execute import execute
from common.study.plan import Extra, Study
from common.study.results import complete, resolve
from lain.data.store import Store
from lain.formats.log.propose import propose
from lain.study.data import PreparedCTR, prepare_data, recognise
from lain.study.kind import CTR
from lain.training.config import TrainConfig

SCHEMA, STATE, STUDY, MODEL, PAGE = "log.yaml", "recipe.json", "study", "model", "page.html"

RATES = (0.002, 0.0005, 0.008)
"""Learning rates, tried in this order on the validation rows."""

CHOICES = ((3, 8, 3), (3, 4, 3), (2, 3, 3), (1, 3, 3), (1, 3, 1), (1, 2, 1), (1, 1, 1))
"""Seeds, epochs and learning rates that are tried: the first that fits into the time is taken."""

START_SECONDS = 12.0
"""A worker process until its first step, and a run's last words."""

COMPARE_SECONDS = 20.0
"""Intervals, plots and the page."""

SHARE = 0.75
"""Of the time that is left, what is planned: runs side by side are slower than one alone."""

ASSUMED = re.compile(r"assumed|left out|none found|not used")


@dataclass(frozen=True)
class Speed:
    """Rows per second of one worker, in training and in scoring."""

    train: float
    score: float


@dataclass(frozen=True)
class Budget:
    """What fits into the time.

    Args:
        seeds: Seeds of each arm.
        epochs: Most epochs of each run.
        rates: Learning rates that are tried, an epoch each.
        max_steps: Most steps of each run, where not even one epoch fits.
    """

    seeds: int
    epochs: int
    rates: int
    max_steps: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a recipe leaves.

    Args:
        page: The page that compares the arms.
        model: The run folder of the better model.
        arm: Its arm.
        words: The comparison, as Markdown.
    """

    page: Path
    model: Path
    arm: str
    words: str


def recipe(
    log: Path,
    out: Path,
    *,
    minutes: float = 10,
    schema: Path | None = None,
    backbone: str = "twin",
    workers: int | None = None,
    report: Callable[[str], None],
) -> Outcome:
    """Prepare a log, train ``base`` and ``lain``, compare them, and keep the better one.

    The schema is that of a public log whose files these are, else one proposed from the files; OUT/log.yaml
    is there to be edited, and the same command goes on from it. The learning rate is chosen for ``base`` on
    validation rows, and the better arm by its mean AUC on them; test rows are for the comparison alone.
    Stopped at any moment, the same command goes on.

    Args:
        log: A file, a folder or a pattern.
        out: Folder of everything that is made.
        minutes: Time that all of it may take, by the speed that is measured first.
        schema: A schema instead of a proposed one.
        backbone: The backbone of both arms.
        workers: Runs at a time; by default 2 where there are two cores.
        report: Called with lines of progress.

    Raises:
        ConfigError: The schema or a setting has mistakes.
        DataError: The log has mistakes, or no column looks like what is needed.
    """
    if not 0 < minutes < math.inf:
        raise ConfigError(f"minutes: must be finite and positive, got {minutes}")
    began = time.monotonic()
    workers = workers or min(2, os.cpu_count() or 1)
    with locked(out):
        options = _data_options(log, out, schema, report)
        prepared = prepare_data(options, log, out / "data", report)
        study, state = _plan(prepared, out, options, backbone, minutes, workers, began, report)
        if "rate" not in state:
            state = _tune(study, state, prepared, out, workers, began + 60 * minutes, report)
        file = out / f"{STUDY}.yaml"
        study = _final(study, state)
        atomic_write(file, yaml.safe_dump({k: v for k, v in asdict(study).items() if v}, sort_keys=False))
        with redirect_stdout(io.StringIO()):
            code = run_study(
                CTR, file=str(file), action="run", data=log, seeds=None, workers=workers, threads=1,
                out=out / STUDY, dry_run=False,
            )  # fmt: skip
        if code:
            raise DataError(f"{out / STUDY}: a run failed, see above; the same command tries it again")
        return _keep(study, prepared, out)


def _data_options(log: Path, out: Path, schema: Path | None, report: Callable[[str], None]) -> dict[str, Any]:
    """Where the data come from, as a study says it."""
    own = out / SCHEMA
    if schema is not None:
        atomic_write(own, schema.read_text(encoding="utf-8"))
    elif not own.exists():
        known = recognise(log)
        if known is not None:
            report(f"these are the files of {known}: its own schema is used")
            return {"format": known}
        atomic_write(own, text := propose(log))
        report(f"proposed a schema, {own}; edit it and give the same command to go on from it")
        for line in text.splitlines():
            if ASSUMED.search(line):
                report(f"  {line.strip().lstrip('# ')}")
    text = own.read_text(encoding="utf-8")
    if "# label: none found" in text:
        raise DataError(
            f"{own}: no column of {log} looks like a click (0 and 1) or a rating; put one there as "
            "columns.label, or a rule such as 'stars >= 4', and give the same command again"
        )
    return {"format": "log", "schema": str(own)}


def _base_settings(store: Store, backbone: str) -> dict[str, Any]:
    """Settings of both arms, by the size of the data."""
    train = store.split("train")
    longest = int(np.quantile(train.length, 0.99)) if len(train) else 0
    settings: dict[str, Any] = {
        "embedding": {"dim": 16},
        "head": {"name": "mlp", "hidden": [64, 32]},
        "history": {"max_length": min(max(longest, 20), 500)},
        "train": {"batch_size": 512 if len(train) >= 50_000 else 128, "embedding_l2": 1e-5},
        "tracking": {"wandb": "disabled"},
        "fit": {"patience": 2, "lr_factor": 0.1, "clip": 10.0, "progress": False},
    }
    if backbone == "din":
        settings["model"] = {"attention_hidden": [32]}
    return settings


def _plan(
    prepared: PreparedCTR,
    out: Path,
    options: dict[str, Any],
    backbone: str,
    minutes: float,
    workers: int,
    began: float,
    report: Callable[[str], None],
) -> tuple[Study, dict[str, Any]]:
    """The study but for what is chosen on the way, and what has been chosen so far."""
    store = Store.open(prepared.path)
    study = Study(
        name="recipe",
        description="Base and LAIN on a log, with one learning rate, chosen for base on validation rows.",
        data=options,
        base=_base_settings(store, backbone),
        backbones=[backbone],
        arms={"base": {"length.preset": "base"}, "lain": {"length.preset": "lain"}},
        seeds=[0],
    )
    asked = {"data": prepared.fingerprint, "minutes": minutes, "backbone": backbone, "base": study.base}
    state = _read_state(out)
    if state is not None and {name: state.get(name) for name in asked} == asked:
        return study, state
    report(f"{prepared.words}; measuring how fast this machine is")
    base = {
        **study.base,
        "data": str(prepared.path),
        "model": {"name": backbone, **study.base.get("model", {})},
    }
    speed = measure_speed(config.load(TrainConfig, None, base=base))
    left = SHARE * (60 * minutes - (time.monotonic() - began))
    budget = choose_budget(
        store.splits, speed, left, workers=workers, batch=study.base["train"]["batch_size"]
    )
    report(
        f"{speed.train:,.0f} rows a second: learning rates to try: {budget.rates}, seeds: {budget.seeds}, "
        f"epochs: {budget.epochs}" + (f", cut off at {budget.max_steps} steps" if budget.max_steps else "")
    )
    state = {**asked, "budget": asdict(budget)}
    _write_state(out, state)
    return study, state


def measure_speed(settings: TrainConfig, *, seconds: float = 3.0) -> Speed:
    """Train and score for a moment, with one thread as a worker does.

    Args:
        settings: Settings of a run.
        seconds: Time for each of the two.
    """
    from lain.training.build import build_model
    from lain.training.module import CTRModule
    from lain.training.run import open_data

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data = open_data(settings)
        module = CTRModule(build_model(settings, data.store.features), settings.train)
        optimizer = module.configure_optimizers()

        def step(batch: Any) -> None:
            optimizer.zero_grad()
            module.loss(batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()

        def score(batch: Any) -> None:
            with torch.no_grad():
                module.model(batch)

        train = _rate(step, data.train_dataloader(), seconds)
        module.eval()
        return Speed(train, _rate(score, data.eval_loader("valid"), seconds))
    finally:
        torch.set_num_threads(threads)


def _rate(act: Callable[[Any], None], batches: Iterable[Any], seconds: float) -> float:
    """Rows per second; the first batch, which warms up, counts only where there is no other."""
    rows, began, first = 0, time.perf_counter(), 0.0
    for number, batch in enumerate(batches):
        act(batch)
        now = time.perf_counter()
        if number == 0:
            first, began = len(batch) / max(now - began, 1e-9), now
            continue
        rows += len(batch)
        if now - began > seconds:
            break
    return rows / max(time.perf_counter() - began, 1e-9) if rows else first


def choose_budget(
    rows: dict[str, int], speed: Speed, seconds: float, *, workers: int, batch: int, tuned: bool = False
) -> Budget:
    """The most that fits into the time; where not even one epoch does, as many steps as do.

    Args:
        rows: Rows of each split.
        speed: Of one worker.
        seconds: Time that is left.
        workers: Runs at a time.
        batch: Rows of a step.
        tuned: Whether the learning rate is chosen already.
    """

    def run(epochs: int) -> float:
        scored = epochs * rows["valid"] + rows["valid"] + rows.get("test", 0)
        return START_SECONDS + epochs * rows["train"] / speed.train + scored / speed.score

    def cost(seeds: int, epochs: int, rates: int) -> float:
        trials = 0 if tuned or rates < 2 else math.ceil(rates / workers) * run(min(epochs, 1))
        return trials + math.ceil(2 * seeds / workers) * run(epochs) + COMPARE_SECONDS

    for seeds, epochs, rates in CHOICES:
        if cost(seeds, epochs, rates) <= seconds:
            return Budget(seeds, epochs, rates)
    waves = math.ceil(2 / workers)
    fixed = cost(1, 0, 1) + waves * rows["valid"] / speed.score
    steps = (seconds - fixed) / waves * speed.train / batch
    return Budget(1, 1, 1, max(int(steps), 20))


def _tune(
    study: Study,
    state: dict[str, Any],
    prepared: PreparedCTR,
    out: Path,
    workers: int,
    deadline: float,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Choose the learning rate on validation rows, then again what fits, by the speed that runs had."""
    budget = Budget(**state["budget"])
    rate = RATES[0]
    if budget.rates > 1:
        rates = list(RATES[: budget.rates])
        grid = Extra(
            study.backbones, ["base"], vary={"train.learning_rate": rates}, overrides={"fit.epochs": 1}
        )
        plan = replace(study, tune=[grid]).tuning()
        specs = complete(resolve(CTR, plan), lambda _: prepared.fingerprint)
        folder = out / STUDY / "tuning"
        folder.mkdir(parents=True, exist_ok=True)
        failures = execute(
            specs, CTR.worker(prepared, folder), folder, workers=workers, tidy=CTR.tidy, report=report
        )
        for failure in failures:
            report(f"error: {failure.spec.key}: {failure.message}")
        runs = finished_runs(specs, folder)
        if not runs:
            raise DataError(f"{folder}: no run finished, see above; the same command tries them again")
        best = max(runs, key=_quality)
        rate = float(best.spec.config["train"]["learning_rate"])
        report(f"learning rate {rate:g}: " + ", ".join(
            f"{run.spec.config['train']['learning_rate']:g} gives a valid AUC of {_quality(run)[0]:.4f}"
            for run in runs
        ))  # fmt: skip
        speeds = [run.record.notes["train_samples_per_second"] for run in runs]
        left = deadline - time.monotonic()
        store = Store.open(prepared.path)
        milliseconds = [run.record.notes["milliseconds_per_sample/valid"] for run in runs]
        speed = Speed(float(np.mean(speeds)), 1e3 / float(np.mean(milliseconds)))
        batch = study.base["train"]["batch_size"]
        again = choose_budget(store.splits, speed, left, workers=workers, batch=batch, tuned=True)
        budget = replace(again, rates=budget.rates)
    state = {**state, "budget": asdict(budget), "rate": rate}
    _write_state(out, state)
    return state


def _quality(run: Run) -> tuple[float, float]:
    """AUC on validation rows, then logloss, the more the better."""
    auc, logloss = (run.record.metrics.get(f"valid/{name}") for name in ("auc", "logloss"))
    return (-math.inf if auc is None else auc, -math.inf if logloss is None else -logloss)


def _final(study: Study, state: dict[str, Any]) -> Study:
    budget = Budget(**state["budget"])
    base = {
        **study.base,
        "train": {**study.base["train"], "learning_rate": state["rate"]},
        "fit": {**study.base["fit"], "epochs": budget.epochs, "max_steps": budget.max_steps},
    }
    return replace(study, base=base, seeds=list(range(budget.seeds)))


def _keep(study: Study, prepared: PreparedCTR, out: Path) -> Outcome:
    """Copy the better model and the page to the top of the folder."""
    specs = complete(resolve(CTR, study.plan()), lambda _: prepared.fingerprint)
    runs = finished_runs(specs, out / STUDY)
    of_arm = {arm: [run for run in runs if run.spec.arm == arm] for arm in study.arms}

    def mean(arm: str) -> tuple[float, ...]:
        return tuple(np.mean([_quality(run) for run in of_arm[arm]], axis=0).tolist())

    arm = max(of_arm, key=mean)  # base where both are equal
    best = max(of_arm[arm], key=_quality)
    with atomic_folder(out / MODEL, replace=True) as folder:
        shutil.copytree(best.folder, folder, dirs_exist_ok=True)
    shutil.copyfile(out / STUDY / PAGE, out / PAGE)
    table = (out / STUDY / "table.md").read_text(encoding="utf-8")
    titles = ("What this shows", "lain against base, AUC x 100", "Test rows by history length")
    return Outcome(out / PAGE, out / MODEL, arm, _sections(table, titles))


def _sections(text: str, titles: Sequence[str]) -> str:
    """Some of the sections of a Markdown text."""
    parts = re.split(r"^## ", text, flags=re.M)[1:]
    return "\n".join(f"## {part.strip()}\n" for part in parts if part.splitlines()[0] in titles)


def _read_state(out: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((out / STATE).read_text(encoding="utf-8"))
        Budget(**found["budget"])
        return found
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_state(out: Path, state: dict[str, Any]) -> None:
    atomic_write(out / STATE, json.dumps(state, indent=1) + "\n")
