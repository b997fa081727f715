"""Search for settings on the validation rows: Optuna, pruned, and resumed where it was stopped."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from common.config import config_hash, load, to_yaml
from common.errors import ConfigError, DivergedError
from common.files import atomic_write, locked
from common.metrics.direction import direction
from common.report.tables import markdown_table
from common.training.run import train
from common.training.task import Measured, Training
from lain.training.config import RENAMED, TrainConfig
from lain.training.run import CTRTask

if TYPE_CHECKING:
    import optuna

STORAGE, BEST, TABLE = "trials.sqlite", "best.yaml", "trials.md"

SPACE: dict[str, Any] = {
    "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "train.embedding_l2": {"low": 1e-7, "high": 1e-4, "log": True},
    "embedding.dim": [8, 16, 32],
}
"""What is searched where nothing else is asked for."""


@dataclass(frozen=True)
class Choice:
    """One setting that is searched.

    Args:
        key: Its dotted key.
        values: The values that it may take; empty for a range.
        low: Lower end of a range.
        high: Upper end, included.
        log: Whether the logarithm is drawn evenly.
    """

    key: str
    values: tuple[Any, ...] = ()
    low: float | int = 0
    high: float | int = 0
    log: bool = False

    @classmethod
    def of(cls, key: str, given: Any) -> Choice:
        """What a space file says of a key: a list of values, or ``{low, high, log}``.

        Raises:
            ConfigError: It is neither.
        """
        if isinstance(given, list) and given:
            return cls(key, values=tuple(given))
        ends = {"low", "high"}
        if not isinstance(given, Mapping) or ends - set(given) or set(given) - {*ends, "log"}:
            raise ConfigError(f"space: {key}: must be a list of values or {{low, high, log}}, got {given!r}")
        low, high, log = given["low"], given["high"], given.get("log", False)
        numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (low, high))
        if not numbers or not -math.inf < low <= high < math.inf or (log and low <= 0):
            wanted = "0 < low <= high" if log else "low <= high"
            raise ConfigError(f"space: {key}: needs finite {wanted}, got {low!r} and {high!r}")
        return cls(key, low=low, high=high, log=bool(log))

    def ends(self) -> tuple[Any, ...]:
        """Values that must be possible for all others to be."""
        return self.values or (self.low, self.high)

    def suggest(self, trial: optuna.Trial) -> Any:
        """A value for a trial."""
        if self.values:
            return trial.suggest_categorical(self.key, self.values)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)


def read_space(file: Path | None) -> list[Choice]:
    """What is searched.

    Args:
        file: A YAML file of dotted keys; None for :data:`SPACE`.

    Raises:
        ConfigError: The file is missing, no YAML, or says something else.
    """
    if file is None:
        return [Choice.of(key, given) for key, given in SPACE.items()]
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{file}: must hold dotted keys, each with a list of values or {{low, high, log}}")
    return [Choice.of(str(key), given) for key, given in content.items()]


class TrialTask(CTRTask):
    """A training that reports every validation to its trial; test rows are not looked at.

    Args:
        config: The settings.
        trial: The trial.
    """

    def __init__(self, config: TrainConfig, trial: optuna.Trial) -> None:
        super().__init__(config)
        self._trial = trial

    def build(self, run_dir: Path) -> Training:
        """The training, pruned where it is below the others."""
        import optuna

        from lain.training.module import CTRModule

        trial, monitor = self._trial, self.config.fit.monitor

        class Module(CTRModule):
            def on_validation_epoch_end(self) -> None:
                super().on_validation_epoch_end()
                value = float(self.trainer.callback_metrics[monitor])
                if math.isfinite(value):
                    trial.report(value, self.trainer.current_epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned()

        built = super().build(run_dir)
        assert isinstance(built.module, CTRModule)
        module = Module(built.module.model, self.config.train, self.config.buckets)
        return replace(built, module=module)

    def evaluate(self, run_dir: Path) -> Measured:
        """Metrics of the validation rows alone."""
        from lain.evaluation.predictions import predict

        assert self._built is not None
        model, data = self._built
        predictions = predict(model, data.eval_loader("valid"), data.store.split("valid"))
        found = predictions.metrics(self.config.buckets)
        return Measured(
            {f"valid/{k}": v for k, v in found.values.items()},
            {f"valid/{k}": v for k, v in found.reasons.items()},
        )


def tune(
    config: Path,
    overrides: Sequence[str],
    out: Path,
    *,
    space: Path | None = None,
    trials: int = 20,
    minutes: float | None = None,
    report: Callable[[str], None],
) -> str:
    """Search for settings by their best validation.

    Sampler: tree-structured Parzen estimator; pruned: below the median of the trials before at that epoch.
    Everything is kept in OUT: stopped at any moment, the same call goes on, with the trial that was running.

    Args:
        config: The YAML file of a run.
        overrides: ``key=value`` on top of it.
        out: The folder of the search.
        space: YAML file of what is searched; None for learning rate, embedding penalty and width.
        trials: Trials in all, those of earlier calls counted.
        minutes: Time after which no trial begins.
        report: Called with a line for each trial.

    Returns:
        The best trials as a Markdown table; ``best.yaml`` and ``trials.md`` are written.

    Raises:
        ConfigError: A setting or the space has mistakes, a package is missing, or no trial came to an end.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(f"lain tune needs Optuna ({error}); pip install 'causalneg-lain[tune]'") from None
    choices = read_space(space)

    def settings(values: Mapping[str, Any]) -> TrainConfig:
        own = [*overrides, *(f"{key}={json.dumps(value)}" for key, value in values.items())]
        return load(TrainConfig, config, own, renamed=RENAMED)

    base = settings({})
    for choice in choices:
        for value in choice.ends():
            settings({choice.key: value})
    if not base.fit.monitor.startswith("valid/"):
        raise ConfigError(f"fit.monitor: a search needs one of the validation rows, got {base.fit.monitor}")
    identity = {"settings": to_yaml(base), "space": [str(choice) for choice in choices]}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    with locked(out):
        study = optuna.create_study(
            storage=f"sqlite:///{(out / STORAGE).resolve()}",
            study_name=config_hash(identity),
            direction="maximize" if direction(base.fit.monitor) == "max" else "minimize",
            sampler=optuna.samplers.TPESampler(seed=base.seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
            load_if_exists=True,
        )
        for left in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # of a call that was killed
            study.tell(left.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(left.params)
        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        while len(study.get_trials(states=ended)) < trials and time.monotonic() < end:
            _trial(study, choices, settings, out, report)
        return _results(study, base, settings, out)


def _trial(
    study: optuna.Study,
    choices: Sequence[Choice],
    settings: Callable[[Mapping[str, Any]], TrainConfig],
    out: Path,
    report: Callable[[str], None],
) -> None:
    """One trial, in a folder that its values name."""
    import optuna

    trial = study.ask()
    values = {choice.key: choice.suggest(trial) for choice in choices}
    shown = ", ".join(f"{key}={_shown(value)}" for key, value in values.items())
    chosen = settings(values)
    chosen.fit.progress = False
    folder = out / f"trial-{config_hash({'values': values, 'study': study.study_name})}"
    try:
        value = train(TrialTask(chosen, trial), folder).record.metrics.get(chosen.fit.monitor)
        if value is None:
            raise ConfigError(f"fit.monitor: {chosen.fit.monitor} has no value on the validation rows")
        study.tell(trial, value)
        report(f"trial {trial.number}: {chosen.fit.monitor} {value:.5f} with {shown}")
    except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        report(f"trial {trial.number}: pruned, {shown}")
    except DivergedError:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        report(f"trial {trial.number}: diverged, {shown}")
    shutil.rmtree(folder, ignore_errors=True)  # what is chosen is trained again, with test rows


def _results(
    study: optuna.Study, base: TrainConfig, settings: Callable[[Mapping[str, Any]], TrainConfig], out: Path
) -> str:
    import optuna

    done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    if not done:
        raise ConfigError(f"{out}: no trial came to an end; give more --trials or --minutes")
    pruned = len(study.get_trials(states=[optuna.trial.TrialState.PRUNED]))
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    ranked = sorted(done, key=lambda trial: sign * float(trial.value or 0))
    keys = list(ranked[0].params)
    rows = [[str(t.number), f"{t.value:.5f}", *(_shown(t.params[key]) for key in keys)] for t in ranked]
    headers = ["trial", base.fit.monitor, *keys]
    text = f"{len(done)} trials, {pruned} pruned, by {base.fit.monitor}\n\n{markdown_table(headers, rows)}"
    atomic_write(out / TABLE, text + "\n")
    atomic_write(out / BEST, to_yaml(settings(ranked[0].params)))
    return f"{len(done)} trials, {pruned} pruned\n\n{markdown_table(headers, rows[:10])}"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
