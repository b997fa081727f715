"""The same numbers on a GPU as on the CPU, and a training run there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.training.config import FitConfig, TrackingConfig
from lain.backbones import BACKBONES
from lain.data.batch import Batch
from lain.data.module import CTRData
from lain.data.store import Store
from lain.heads import HEADS
from lain.length import LengthConfig
from lain.model import CTRModel
from lain.ops.linear import span_linear
from lain.ops.products import span_dot, span_scatter, span_sum
from lain.ops.recurrence import GRU, PackedSpans
from lain.ops.softmax import span_softmax
from lain.ops.spans import Spans
from lain.training.build import build_model
from lain.training.config import EmbeddingConfig, HistoryConfig, OptimConfig, TrainConfig
from lain.training.run import train_run
from lain.world import WorldConfig, make_world

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA GPU"),
]
DEVICE = "cuda"
LENGTHS: dict[str, dict[str, Any]] = {
    "sim": {"short_length": 5, "top_k": 7},
    "sdim": {"short_length": 5},
    "twin": {"short_length": 5, "top_k": 7},
    "eta": {"short_length": 5, "top_k": 7},
}
SIZES: dict[str, Any] = {
    "embedding": EmbeddingConfig(dim=8),
    "head": HEADS.component("mlp", hidden=[16]),
    "history": HistoryConfig(max_length=60),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(WorldConfig(seed=3).for_users(60), tmp_path_factory.mktemp("gpu") / "world")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def answers(model: CTRModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits, and the gradients of a number that depends on each of them differently; on the CPU."""
    model.zero_grad()
    output = model(batch)
    logits = output.logit if output.auxiliary is None else torch.cat([output.logit, output.auxiliary])
    factors = torch.linspace(0.5, 1.5, len(logits), dtype=logits.dtype, device=logits.device)
    (logits * factors).mean().backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach().cpu(), gradients


@pytest.mark.parametrize("preset", ["base", "lain", "lain-plus", "lain-published"])
@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_backbone(backbone: Any, preset: Any, world: Path) -> None:
    data = CTRData(world, max_length=60, batch_size=64)
    batch = data.batches("train")[np.arange(64)]
    torch.manual_seed(0)
    component = BACKBONES.component(backbone, **LENGTHS.get(backbone, {}))
    config = TrainConfig(data=world, model=component, length=LengthConfig(preset=preset), **SIZES)
    model = build_model(config, data.store.features).double()
    for parameter in model.parameters():
        parameter.data += 0.01 * random(*parameter.shape)  # also what starts at zero
    expected, of_cpu = answers(model, batch)
    found, of_gpu = answers(model.to(DEVICE), batch.to(DEVICE))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert set(of_gpu) == set(of_cpu)
    for name, gradient in of_cpu.items():
        torch.testing.assert_close(of_gpu[name], gradient, rtol=1e-7, atol=1e-11, msg=name)


def test_spans() -> None:
    """Every product, and the gradients of all."""
    offsets, index = torch.tensor([0, 3, 3, 8]), torch.tensor([1, 4, 1, 0, 2, 2, 3, 4])
    leaves = [random(3, 2, 4), random(5, 2, 4, seed=1), random(6, 4, seed=2), random(6, 4, seed=3)]
    found = []
    for device in ("cpu", DEVICE):
        spans = Spans(offsets.to(device), index.to(device))
        query, table, weight, product = (x.to(device).requires_grad_() for x in leaves)
        share = span_softmax(span_dot(query, table, spans), spans)
        mixed = span_sum(share, table, spans)
        back = span_scatter(share, mixed, spans, len(table))
        start, behind = (query @ weight.T)[:, 0], (table @ product.T)[:2, 0]
        layer = span_linear(query[:, 0], table[:, 0], spans, weight, product, start, behind)
        kept = spans.top(share[:, 0], 2)
        numbers = [
            share,
            mixed,
            back,
            layer,
            layer.index_select(0, kept.index),
            table[:, 0].index_select(0, spans.tail(2).index),
        ]
        whole = torch.cat([x.flatten() for x in numbers])
        factors = torch.linspace(0.5, 1.5, len(whole), dtype=whole.dtype, device=device)
        gradients = torch.autograd.grad((whole * factors).sum(), [query, table, weight, product])
        found.append([whole.detach().cpu(), kept.index.cpu(), *(g.cpu() for g in gradients)])
    for of_cpu, of_gpu in zip(*found, strict=True):
        torch.testing.assert_close(of_gpu, of_cpu, rtol=1e-9, atol=1e-11)


def test_recurrence() -> None:
    spans = Spans(torch.tensor([0, 2, 2, 7, 8]), torch.tensor([3, 0, 1, 1, 2, 0, 3, 2]))
    torch.manual_seed(0)
    cell, inputs, weight = GRU(4).double(), random(4, 4), torch.rand(8, dtype=torch.float64)
    found = []
    for device in ("cpu", DEVICE):
        packed = PackedSpans.of(Spans(spans.offsets.to(device), spans.index.to(device)))
        cell, x, a = cell.to(device), inputs.to(device).requires_grad_(), weight.to(device).requires_grad_()
        states, last = cell(x, packed.index, a[packed.order], packed.sizes)
        whole = torch.cat([states, packed.by_sample(last)])
        gradients = torch.autograd.grad(whole.square().sum(), [x, a, *cell.parameters()])
        found.append([whole.detach().cpu(), *(g.cpu() for g in gradients)])
    for of_cpu, of_gpu in zip(*found, strict=True):
        torch.testing.assert_close(of_gpu, of_cpu, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("precision", "apart"), [("32-true", 1e-3), ("bf16-mixed", 2**-6)])
def test_training(precision: Any, apart: float, world: Path, tmp_path: Path) -> None:
    """One epoch on a GPU ends where it ends on the CPU, to the rounding of the precision."""
    metrics = []
    for accelerator in ("cpu", "gpu"):
        config = TrainConfig(
            data=world,
            model=BACKBONES.component("twin", **LENGTHS["twin"]),
            **SIZES,
            length=LengthConfig(preset="lain"),
            train=OptimConfig(batch_size=64, learning_rate=0.005),
            fit=FitConfig(epochs=1, clip=1.0, accelerator=accelerator, precision=precision, progress=False),
            tracking=TrackingConfig(wandb="disabled"),
            diagnose_rows=20,
        )
        metrics.append(train_run(config, tmp_path / accelerator).metrics)
        assert (tmp_path / accelerator / "checkpoints" / "best.ckpt").is_file()
    of_cpu, of_gpu = metrics
    assert Store.open(world).splits["test"] == of_gpu["test/samples"]
    assert of_gpu["test/logloss"] == pytest.approx(of_cpu["test/logloss"], abs=apart)
