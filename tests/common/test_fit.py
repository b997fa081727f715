"""Training: exact resume, early stop, cut learning rate, accumulation and clipping."""

from __future__ import annotations

import csv
import itertools
import math
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from common.errors import ConfigError, DataError
from common.training import fit as fit_module
from common.training.fit import (
    FitConfig,
    FitResult,
    batch_size,
    fit,
    forget_optimizer,
    load_checkpoint,
    position,
)
from common.training.tracking import MetricsFile

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
        self.log("valid/loss", value, batch_size=ROWS)

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
        "mode": "min",
        "patience": 0,
        "accelerator": "cpu",
        "progress": False,
        "log_every": 1,
        "checkpoint_steps": 1,
    }
    return FitConfig(**(values | changes))


def train(
    folder: Path, config: FitConfig, kill: Kill | None = None, scripted: Sequence[float] | None = None
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
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


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


def test_without_resume_everything_begins_again(tmp_path: Path) -> None:
    first, _ = train(tmp_path, settings())
    network = Network()
    log = MetricsFile(tmp_path / "metrics.csv")
    fit(network, Rows(), config=settings(), run_dir=tmp_path, seed=5, loggers=[log], resume=False)
    assert len(network.seen) == 3 * BATCHES
    assert_equal(dict(first.state_dict()), dict(network.state_dict()))
    assert [row["step"] for row in table(tmp_path)].count("0") == 1


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


def test_more_is_better_when_the_mode_says_so(tmp_path: Path) -> None:
    _, result = train(tmp_path, settings(epochs=5, patience=1, mode="max"), scripted=[0.5, 0.6, 0.6, 0.9, 1])
    assert (result.epochs, result.stopped_early) == (3, True)


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
    with pytest.raises(ConfigError, match=r"did not log 'valid/los'; did you mean 'valid/loss'\?"):
        train(tmp_path, settings(monitor="valid/los"))


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


def test_ctrl_c_is_an_interrupt_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings(), Kill(9, KeyboardInterrupt()))
    assert signal.getsignal(signal.SIGINT) is handler
    whole, _ = train(tmp_path / "whole", settings())
    resumed, _ = train(tmp_path, settings())
    assert_equal(dict(resumed.state_dict()), dict(whole.state_dict()))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(tmp_path, settings(epochs=1))
    with pytest.raises(DataError, match=r"last\.ckpt: the checkpoint is of another model"):
        fit(Line(), Four(), config=settings(epochs=1), run_dir=tmp_path, seed=0)


@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_a_cut_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    _, result = train(tmp_path, settings(epochs=1))
    result.last_path.write_bytes(result.last_path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"last\.ckpt: not a readable checkpoint"):
        train(tmp_path, settings(epochs=1))


def test_all_settings_out_of_range_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        FitConfig(epochs=0, clip=-1.0, lr_factor=0.0, max_steps=0)
    assert caught.value.messages == (
        "epochs: must be at least 1, got 0",
        "clip: must be at least 0, got -1.0",
        "max_steps: must be at least 1 or null, got 0",
        "lr_factor: must be above 0 and at most 1, got 0.0",
    )
    with pytest.raises(ConfigError, match=r"clip: must be finite, got inf"):
        FitConfig(clip=math.inf)


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
    state = load_checkpoint(result.last_path)["callbacks"][fit_module._Meter(None).state_key]
    assert state["samples"] == 3 * ROWS
    assert result.samples_per_second == 3 * ROWS / state["train_seconds"]
    assert state["train_seconds"] < result.wall_seconds
