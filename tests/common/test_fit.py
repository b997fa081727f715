"""Training: exact resume, early stop, cut learning rate, accumulation and clipping."""

from __future__ import annotations

import csv
import itertools
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from common.config import load
from common.errors import ConfigError, DataError, DivergedError, Interrupted
from common.training.callbacks import Meter, batch_size
from common.training.checkpoint import forget_optimizer, load_checkpoint
from common.training.config import RENAMED, FitConfig
from common.training.fit import FitResult, fit, position
from common.training.metrics_file import MetricsFile

ROWS, WIDTH, BATCH = 56, 4, 8
BATCHES = ROWS // BATCH


class Order:
    """Shuffled batches of row numbers, in an order that the epoch decides."""

    def __init__(self, epoch: int, skip: int) -> None:
        self.epoch = self.resumed = epoch
        self.skip = skip

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(self.epoch)).view(BATCHES, BATCH)
        for rows in order[self.skip if self.epoch == self.resumed else 0 :]:
            yield rows.tolist()


class Rows(L.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(7)
        inputs = torch.randn(ROWS, WIDTH, generator=random)
        self.rows = TensorDataset(inputs, (inputs.sum(dim=1) > 0).float())
        self.place = (0, 0)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.rows, sampler=Order(*self.place), batch_size=None)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.rows, batch_size=ROWS)

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        epoch, batches = position(self.trainer)
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.place = (state_dict["epoch"], state_dict["batches"])


class Network(L.LightningModule):
    """A small network with dropout, whose validation metric is its loss."""

    def __init__(self, scripted: Sequence[float] | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
        self.scripted = scripted
        self.seen: list[Tensor] = []
        self.rates: list[float] = []

    def loss(self, batch: list[Tensor]) -> Tensor:
        inputs, labels = batch
        return nn.functional.binary_cross_entropy_with_logits(self.layers(inputs).squeeze(1), labels)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch[0])
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        value = self.loss(batch) if self.scripted is None else self.scripted[self.trainer.current_epoch]
        for name in ("valid/loss", "valid/auc"):
            self.log(name, value, batch_size=ROWS)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


class KilledError(Exception):
    pass


class Kill(Callback):
    """Ends the process, as it were, in the middle of a batch."""

    def __init__(self, batch: int, error: BaseException) -> None:
        self.batch, self.error = batch, error

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise self.error


def settings(**changes: Any) -> FitConfig:
    values: dict[str, Any] = {
        "epochs": 3,
        "monitor": "valid/loss",
        "patience": 0,
        "accelerator": "cpu",
        "progress": False,
        "log_every": 1,
        "checkpoint_steps": 1,
    }
    return FitConfig(**(values | changes))


def train(
    folder: Path, config: FitConfig, kill: Callback | None = None, scripted: Sequence[float] | None = None
) -> tuple[Network, FitResult]:
    network = Network(scripted)
    result = fit(
        network,
        Rows(),
        config=config,
        run_dir=folder,
        seed=5,
        loggers=[MetricsFile(folder / "metrics.csv")],
        callbacks=[] if kill is None else [kill],
    )
    return network, result


def weights(path: Path) -> dict[str, Tensor]:
    content: dict[str, Tensor] = load_checkpoint(path)["state_dict"]
    return content


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def table(folder: Path) -> list[dict[str, str]]:
    """The logged rows, without what the machine was like."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if not name.startswith("system/")} for row in rows]


STOPS = ([0], [3], [6], [7], [8], [13], [20], [2, 5, 9, 16])
TYPICAL = [(STOPS[1], 1, 1), (STOPS[3], 0, 1), (STOPS[5], 2, 2), (STOPS[6], 1, 1), (STOPS[7], 1, 2)]
OTHERS = [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in itertools.product(STOPS, [0, 1, 2], [1, 2])
    if case not in TYPICAL
]


@pytest.mark.parametrize(("kills", "checkpoint_steps", "accumulate"), [*TYPICAL, *OTHERS])
def test_a_run_killed_and_resumed_equals_one_that_was_not(
    tmp_path: Path, kills: list[int], checkpoint_steps: int, accumulate: int
) -> None:
    config = settings(checkpoint_steps=checkpoint_steps, accumulate=accumulate, lr_factor=0.5, clip=0.5)
    whole, expected = train(tmp_path / "whole", config)
    for kill in kills:
        with pytest.raises(KilledError):
            train(tmp_path / "parts", config, Kill(kill, KilledError()))
    resumed, result = train(tmp_path / "parts", config)
    assert_equal(weights(result.last_path), weights(expected.last_path))
    assert_equal(weights(result.best_path), weights(expected.best_path))
    assert_equal(dict(resumed.state_dict()), dict(whole.state_dict()))
    for ours, theirs in zip(reversed(resumed.seen), reversed(whole.seen), strict=False):
        assert torch.equal(ours, theirs)
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    assert (result.epochs, result.stopped_early) == (3, False)


def test_every_epoch_sees_every_row_once_in_another_order(tmp_path: Path) -> None:
    network, _ = train(tmp_path, settings(epochs=2))
    first, second = torch.cat(network.seen[:BATCHES]), torch.cat(network.seen[BATCHES:])
    assert not torch.equal(first, second)
    assert (
        sorted(first[:, 0].tolist())
        == sorted(second[:, 0].tolist())
        == sorted(Rows().rows.tensors[0][:, 0].tolist())
    )


def test_a_complete_run_is_not_trained_again(tmp_path: Path) -> None:
    first, one = train(tmp_path, settings())
    second, two = train(tmp_path, settings())
    assert second.seen == []
    assert one.epochs == two.epochs == 3
    assert two.samples_per_second == one.samples_per_second > 0
    assert two.wall_seconds > 0
    assert_equal(dict(first.state_dict()), dict(second.state_dict()))


def test_a_complete_run_goes_on_when_more_epochs_are_asked_for(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", settings(epochs=5))
    train(tmp_path / "parts", settings(epochs=2))
    parts, result = train(tmp_path / "parts", settings(epochs=5))
    assert result.epochs == 5
    assert_equal(dict(parts.state_dict()), dict(whole.state_dict()))


def test_another_seed_gives_another_dropout(tmp_path: Path) -> None:
    networks = []
    for seed in (1, 2):
        networks.append(Network())
        fit(networks[-1], Rows(), config=settings(epochs=1), run_dir=tmp_path / str(seed), seed=seed)
    first, second = (network.state_dict()["layers.0.weight"] for network in networks)
    assert not torch.equal(first, second)


def test_patience_counts_epochs_without_improvement_and_the_best_weights_come_back(tmp_path: Path) -> None:
    script = [0.9, 0.5, 0.7, 0.5, 0.4, 0.8]
    network, result = train(tmp_path, settings(epochs=6, patience=2), scripted=script)
    assert (result.epochs, result.stopped_early) == (4, True)
    best, _ = train(tmp_path / "two", settings(epochs=2), scripted=script)
    assert_equal(dict(network.state_dict()), dict(best.state_dict()))
    last = weights(result.last_path)["layers.0.weight"]
    assert not torch.equal(last, network.state_dict()["layers.0.weight"])


@pytest.mark.parametrize(("monitor", "epochs"), [("valid/auc", 3), ("valid/loss", 2)])
def test_the_metric_says_whether_more_or_less_is_better(tmp_path: Path, monitor: str, epochs: int) -> None:
    script = [0.5, 0.6, 0.6, 0.9, 1]
    _, result = train(tmp_path, settings(epochs=5, patience=1, monitor=monitor), scripted=script)
    assert (result.epochs, result.stopped_early) == (epochs, True)


def test_patience_is_remembered_over_a_kill(tmp_path: Path) -> None:
    script = [0.1, 0.5, 0.5, 0.5, 0.5, 0.5]
    config = settings(epochs=6, patience=3)
    with pytest.raises(KilledError):
        train(tmp_path, config, Kill(3 * BATCHES + 2, KilledError()), scripted=script)
    _, result = train(tmp_path, config, scripted=script)
    assert (result.epochs, result.stopped_early) == (4, True)
    again, result = train(tmp_path, config, scripted=script)
    assert (again.seen, result.epochs, result.stopped_early) == ([], 4, True)


def test_the_learning_rate_is_cut_after_each_epoch_without_improvement(tmp_path: Path) -> None:
    script = [0.5, 0.6, 0.4, 0.4, 0.4]
    config = settings(epochs=5, lr_factor=0.1)
    expected = [0.05, 0.05, 0.005, 0.005, 0.0005]
    network, _ = train(tmp_path / "whole", config, scripted=script)
    assert network.rates[::BATCHES] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(KilledError):
        train(tmp_path / "parts", config, Kill(3 * BATCHES + 2, KilledError()), scripted=script)
    resumed, _ = train(tmp_path / "parts", config, scripted=script)
    assert resumed.rates[-2 * BATCHES :: BATCHES] == network.rates[-2 * BATCHES :: BATCHES]


def test_a_metric_without_a_value_counts_neither_way(tmp_path: Path) -> None:
    nan = math.nan
    _, result = train(tmp_path, settings(epochs=5, patience=1), scripted=[nan, 0.5, nan, nan, 0.4])
    assert (result.epochs, result.stopped_early) == (5, False)


def test_a_metric_that_never_has_a_value_keeps_the_last_weights(tmp_path: Path) -> None:
    network, result = train(tmp_path, settings(epochs=2, patience=1), scripted=[math.nan, math.nan])
    assert_equal(dict(network.state_dict()), weights(result.last_path))


def test_an_unknown_monitor_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did not log 'valid/gauc'; did you mean 'valid/auc'\?"):
        train(tmp_path, settings(monitor="valid/gauc"))


def test_a_finished_run_keeps_its_weights_without_the_optimizer(tmp_path: Path) -> None:
    network, result = train(tmp_path, settings())
    folder = result.best_path.parent
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    forget_optimizer(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"best.ckpt"}
    weights = load_checkpoint(result.best_path)["state_dict"]
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    # Where no epoch was the best, the last weights are all there is.
    result.best_path.rename(folder / "last.ckpt")
    forget_optimizer(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"last.ckpt"}


@pytest.mark.parametrize(("steps", "epochs"), [(3, 1), (BATCHES, 1), (10, 2)])
def test_max_steps_ends_with_a_validation(tmp_path: Path, steps: int, epochs: int) -> None:
    network, result = train(tmp_path, settings(max_steps=steps))
    assert len(network.seen) == steps
    assert result.epochs == epochs
    assert result.best_path.name == "best.ckpt"
    again, _ = train(tmp_path, settings(max_steps=steps))
    assert again.seen == []


def test_validation_every_second_epoch(tmp_path: Path) -> None:
    train(tmp_path, settings(epochs=4, check_every=2))
    assert [row["epoch"] for row in table(tmp_path) if row["valid/loss"]] == ["1", "3"]


def test_validation_by_steps_across_epochs(tmp_path: Path) -> None:
    _, result = train(tmp_path, settings(epochs=2, check_steps=4))
    validated = [row for row in table(tmp_path) if row["valid/loss"]]
    assert [int(row["step"]) for row in validated] == [3, 7, 11]
    assert [row["epoch"] for row in validated] == ["0", "1", "1"]
    assert load_checkpoint(result.best_path)["global_step"] in (4, 8, 12)
    trained = [row for row in table(tmp_path) if row["train/loss"]]
    assert not any(row["valid/loss"] for row in trained)


@pytest.mark.parametrize("at", [5, 8, 10])
def test_a_run_killed_between_validations_by_steps_ends_the_same(tmp_path: Path, at: int) -> None:
    config = settings(epochs=2, check_steps=4)
    whole, expected = train(tmp_path / "whole", config)
    with pytest.raises(KilledError):
        train(tmp_path / "parts", config, Kill(at, KilledError()))
    resumed, result = train(tmp_path / "parts", config)
    assert_equal(weights(result.last_path), weights(expected.last_path))
    assert_equal(weights(result.best_path), weights(expected.best_path))
    assert_equal(dict(resumed.state_dict()), dict(whole.state_dict()))
    assert table(tmp_path / "parts") == table(tmp_path / "whole")


def test_patience_counts_validations_by_steps(tmp_path: Path) -> None:
    network, result = train(
        tmp_path, settings(epochs=3, check_steps=2, patience=2, monitor="valid/auc"), scripted=[0.5] * 3
    )
    assert result.stopped_early
    assert len(network.seen) == 6
    with pytest.raises(ConfigError, match="check_steps: validates by steps, and check_every=2 by epochs"):
        settings(check_steps=2, check_every=2)


class Line(L.LightningModule):
    """``y = w x`` with the squared error: gradients by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, target = batch
        return ((inputs @ self.weight - target) ** 2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Four(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
        target = torch.tensor([3.0, 0.0, 1.0, 0.0], dtype=torch.float64)
        return DataLoader(TensorDataset(inputs, target), batch_size=1)


def line(tmp_path: Path, **changes: Any) -> list[float]:
    module = Line()
    fit(module, Four(), config=settings(epochs=1, **changes), run_dir=tmp_path, seed=0)
    values: list[float] = module.weight.tolist()
    return values


def test_accumulation_averages_batches_and_steps_on_what_is_left(tmp_path: Path) -> None:
    # Errors of the first three rows at w = (1, -2): -2, -2, -1; gradients 2 e x: (-4, 0), (0, -4), (-4, -2).
    # Their mean is (-8/3, -2); a step of 0.5 leads to (7/3, -1). The fourth row is left alone: error 4/3,
    # gradient (8/3, 8/3), a third of it as every batch weighs 1/3, half of that as the step.
    assert line(tmp_path, accumulate=3) == pytest.approx([7 / 3 - 4 / 9, -1 - 4 / 9], rel=1e-14)


def test_clipping_bounds_the_norm_of_the_accumulated_gradient(tmp_path: Path) -> None:
    # The mean of all four gradients at (1, -2): the fourth error is -1, gradient (-2, -2).
    # (-10, -8) / 4 = (-2.5, -2), of norm sqrt(10.25); clipped to 0.1, times the step of 0.5.
    norm = math.sqrt(10.25)
    expected = [1 + 0.05 * 2.5 / norm, -2 + 0.05 * 2 / norm]
    assert line(tmp_path, accumulate=4, clip=0.1) == pytest.approx(expected, rel=1e-6)


def test_without_validation_the_last_weights_are_the_result(tmp_path: Path) -> None:
    result = fit(Line(), Four(), config=settings(epochs=1), run_dir=tmp_path, seed=0)
    assert result.best_path == result.last_path


class Send(Callback):
    """Sends this process a signal in the middle of a batch."""

    def __init__(self, signum: int, *batches: int) -> None:
        self.signum, self.batches = signum, batches

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.fit_loop.total_batch_idx in self.batches:
            signal.raise_signal(self.signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("batch", "accumulate", "step"), [(9, 1, 10), (9, 2, 6), (BATCHES - 1, 1, BATCHES)])
def test_a_signal_saves_the_step_that_is_under_way(
    tmp_path: Path, signum: int, batch: int, accumulate: int, step: int
) -> None:
    """By default no checkpoint is due inside an epoch: that of the signal is the only one."""
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    config = settings(checkpoint_steps=0, accumulate=accumulate, lr_factor=0.5)
    with pytest.raises(Interrupted, match=rf"step {step} is saved; run the same command again") as caught:
        train(tmp_path, config, Send(signum, batch))
    assert caught.value.signum == signum
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == step
    whole, _ = train(tmp_path / "whole", config)
    resumed, _ = train(tmp_path, config)
    assert_equal(dict(resumed.state_dict()), dict(whole.state_dict()))
    assert table(tmp_path) == table(tmp_path / "whole")


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped at once"):
        train(tmp_path, settings(accumulate=4, checkpoint_steps=0), Send(signal.SIGINT, 1, 2))
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_signal_that_the_process_ignores_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, result = train(tmp_path, settings(epochs=1), Send(signal.SIGINT, 2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.epochs == 1


def test_a_checkpoint_is_written_every_few_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 61)
    monkeypatch.setattr("common.training.checkpoint.time.monotonic", lambda: next(clock))
    with pytest.raises(KilledError):
        train(tmp_path, settings(checkpoint_steps=0, checkpoint_minutes=1.0), Kill(5, KilledError()))
    assert load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 5
    with pytest.raises(KilledError):
        train(tmp_path / "two", settings(checkpoint_steps=0, checkpoint_minutes=0.0), Kill(5, KilledError()))
    assert not (tmp_path / "two" / "checkpoints" / "last.ckpt").exists()
    assert FitConfig().checkpoint_minutes == 5


class Scheduled(Network):
    """With a schedule that sets the rate anew at every step."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_a_cut_of_the_rate_and_a_schedule_multiply(tmp_path: Path) -> None:
    script = [0.5, 0.6, 0.4, 0.4, 0.4]
    cut = [1, 1, 0.1, 0.1, 0.01]
    expected = [0.05 * cut[step // BATCHES] / (1 + step) for step in range(5 * BATCHES)]
    config = settings(epochs=5, lr_factor=0.1)
    whole = Scheduled(script)
    fit(whole, Rows(), config=config, run_dir=tmp_path / "whole", seed=5)
    assert whole.rates == pytest.approx(expected, rel=1e-12)
    kill = Kill(3 * BATCHES + 2, KilledError())
    with pytest.raises(KilledError):
        fit(Scheduled(script), Rows(), config=config, run_dir=tmp_path, seed=5, callbacks=[kill])
    resumed = Scheduled(script)
    fit(resumed, Rows(), config=config, run_dir=tmp_path, seed=5)
    assert resumed.rates == whole.rates[-len(resumed.rates) :]


@pytest.mark.parametrize(
    ("every", "steps"), [(1000, [0, 6, 7, 13, 14, 20]), (5, [0, 4, 6, 7, 9, 13, 14, 19, 20])]
)
def test_the_first_and_the_last_step_of_every_epoch_are_logged(
    tmp_path: Path, every: int, steps: list[int]
) -> None:
    train(tmp_path, settings(log_every=every))
    assert [int(row["step"]) for row in table(tmp_path) if row["train/loss"]] == steps


def test_with_accumulation_the_first_and_the_last_step_are_logged_too(tmp_path: Path) -> None:
    train(tmp_path, settings(log_every=1000, accumulate=3, epochs=2))
    assert [int(row["step"]) for row in table(tmp_path) if row["train/loss"]] == [0, 2, 3, 5]


def test_the_row_of_a_step_is_in_the_file_before_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill right behind a checkpoint loses no row: the checkpoint counts on it."""
    rows: list[tuple[int, list[str]]] = []
    save = L.Trainer.save_checkpoint

    def saving(trainer: L.Trainer, path: Path, *args: Any, **named: Any) -> None:
        rows.append((trainer.global_step, [row["step"] for row in table(tmp_path) if row["train/loss"]]))
        save(trainer, path, *args, **named)

    monkeypatch.setattr(L.Trainer, "save_checkpoint", saving)
    train(tmp_path, settings(epochs=2))
    assert len(rows) >= 2 * BATCHES
    for step, written in rows:
        assert written == [str(number) for number in range(step)]


def test_rows_behind_the_checkpoint_go_when_the_run_is_resumed_with_another_log_every(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(tmp_path, settings(checkpoint_steps=4), Kill(6, KilledError()))
    assert [row["step"] for row in table(tmp_path)] == ["0", "1", "2", "3", "4", "5"]
    train(tmp_path, settings(checkpoint_steps=4, log_every=1000, epochs=1))
    assert [row["step"] for row in table(tmp_path)] == ["0", "1", "2", "3", "6", "6"]


class Diverging(Network):
    """Its loss or its weights are not finite from a step on."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__()
        self.step, self.what = step, what

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.what == "loss" and self.global_step >= self.step:
            return loss * math.nan
        return loss

    def on_before_zero_grad(self, *_: Any) -> None:
        if self.what == "weights" and self.global_step == self.step:
            nn.init.constant_(self.get_parameter("layers.3.bias"), math.inf)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("loss", r"training diverged: the loss is not finite from step 10 on; lower train.learning_rate"),
        ("weights", r"training diverged: (the loss|the weights 'layers.3.bias') (are|is) not finite"),
    ],
)
def test_a_training_that_diverges_stops_and_keeps_its_last_good_checkpoint(
    tmp_path: Path, what: str, line: str
) -> None:
    config = settings(checkpoint_steps=4)
    with pytest.raises(DivergedError, match=line) as caught:
        fit(Diverging(9, what), Rows(), config=config, run_dir=tmp_path, seed=5)
    last = tmp_path / "checkpoints" / "last.ckpt"
    step = load_checkpoint(last)["global_step"]
    assert f"{last}, of step {step}, is kept" in str(caught.value)
    assert 7 <= step < 10
    assert all(bool(torch.isfinite(value).all()) for value in weights(last).values())


def test_a_metric_without_a_value_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, settings(epochs=3), scripted=[math.nan, math.nan, math.nan])
    assert capsys.readouterr().err.count("valid/loss has no value on these validation rows") == 1


def test_fewer_epochs_than_are_done_are_refused(tmp_path: Path) -> None:
    train(tmp_path, settings(epochs=2))
    with pytest.raises(ConfigError, match=r"fit.epochs: .* has 2 epochs behind it, got 1"):
        train(tmp_path, settings(epochs=1))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(tmp_path, settings(epochs=1))
    with pytest.raises(DataError, match=r"last\.ckpt: the checkpoint is of another model"):
        fit(Line(), Four(), config=settings(epochs=1), run_dir=tmp_path, seed=0)


def broken_checkpoints() -> Iterator[tuple[str, Callable[[Path], object]]]:
    def without(part: str) -> Callable[[Path], object]:
        def remove(path: Path) -> None:
            content = torch.load(path, weights_only=True)
            del content[part]
            torch.save(content, path)

        return remove

    yield from (
        (f"cut to {keep}", lambda path, keep=keep: path.write_bytes(path.read_bytes()[:keep]))
        for keep in (0, 1, 10, 100, 1000, 2000, 4000)
    )
    noise = torch.randint(0, 256, (200,), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    yield "noise", lambda path: path.write_bytes(noise.numpy().tobytes())
    yield "text", lambda path: path.write_text("not a checkpoint")
    yield "a list", lambda path: torch.save([1, 2], path)
    yield "other weights", lambda path: torch.save({"state_dict": 3}, path)
    yield from (
        (f"without {p}", without(p)) for p in ("callbacks", "state_dict", "optimizer_states", "loops")
    )


@pytest.mark.parametrize(
    ("name", "spoil"), [pytest.param(*case, id=case[0]) for case in broken_checkpoints()]
)
def test_a_broken_checkpoint_is_refused_in_one_line_that_names_it(
    tmp_path: Path, name: str, spoil: Callable[[Path], object]
) -> None:
    _, result = train(tmp_path, settings(epochs=1))
    spoil(result.last_path)
    with pytest.raises(DataError, match=r"last\.ckpt: not a readable checkpoint.*remove it") as caught:
        train(tmp_path, settings(epochs=2))
    assert "\n" not in str(caught.value)


def test_all_settings_out_of_range_are_named(tmp_path: Path) -> None:
    wrong = ["epochs=0", "clip=-1.0", "lr_factor=0.0", "max_steps=0", "mode=max"]
    with pytest.raises(ConfigError) as caught:
        load(FitConfig, None, wrong, renamed={"mode": RENAMED["fit.mode"]})
    assert [message.removeprefix("command line: ") for message in caught.value.messages] == [
        f"mode: this setting is now {RENAMED['fit.mode']}",
        "epochs: must be at least 1, got 0",
        "max_steps: must be at least 1, got 0",
        "clip: must be at least 0, got -1.0",
        "lr_factor: must be above 0, got 0.0",
    ]
    with pytest.raises(ConfigError, match=r"clip: must be finite, got inf"):
        FitConfig(clip=math.inf)


def test_a_metric_without_a_known_direction_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(
        ConfigError, match=r"'valid/ndgc@10' .*did you mean 'valid/ndcg@10'\? \(there are auc"
    ):
        FitConfig(monitor="valid/ndgc@10")
    with pytest.raises(ConfigError, match=r"'valid/calibration/0-50' is better is not known .*logloss"):
        FitConfig(monitor="valid/calibration/0-50")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_a_config_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the trainer refuses this config"):
        train(tmp_path, settings(accelerator="gpu"))


def test_position_needs_our_trainer() -> None:
    trainer = L.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    with pytest.raises(RuntimeError, match=r"position: the trainer is not one that fit\(\) made"):
        position(trainer)


def test_batch_size_by_kind() -> None:
    class Sized:
        def __len__(self) -> int:
            return 5

    assert batch_size(torch.zeros(3, 2)) == 3
    assert batch_size([torch.zeros(4), torch.zeros(9)]) == 4
    assert batch_size({"a": torch.zeros(2)}) == 2
    assert batch_size(Sized()) == 5


def test_throughput_counts_training_samples_only(tmp_path: Path) -> None:
    _, result = train(tmp_path, settings())
    state = load_checkpoint(result.last_path)["callbacks"][Meter(None).state_key]
    assert state["samples"] == 3 * ROWS
    assert result.samples_per_second == 3 * ROWS / state["train_seconds"]
    assert state["train_seconds"] < result.wall_seconds
