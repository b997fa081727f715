"""RowAdam against PyTorch's Adam and SparseAdam; clipping against PyTorch's on dense copies."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lain.training.optim import RowAdam, clip_gradients

ROWS, WIDTH = 6, 3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameter(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(random(*shape, seed=seed))


def sparse(rows: list[int], values: Tensor) -> Tensor:
    """A gradient that names rows, perhaps twice."""
    size = (ROWS, values.shape[1])
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, size, check_invariants=True)


STEPS = [[0, 2, 2, 5], [1], [5, 0, 0, 0], [3, 2], [2]]
"""Rows that each step's gradient names."""


class TestDense:
    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    @pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)])
    def test_is_adam(self, weight_decay: float, betas: tuple[float, float]) -> None:
        """To the bit, over several steps and parameters, one of which has a gradient only sometimes."""
        own, theirs = ([parameter(4, 3), parameter(5, seed=1), parameter(2, 2, seed=2)] for _ in range(2))
        how: dict[str, Any] = {"lr": 0.05, "betas": betas, "eps": 1e-6, "weight_decay": weight_decay}
        optimizers = RowAdam(own, **how), torch.optim.Adam(theirs, fused=True, **how)
        for step in range(6):
            for parameters in (own, theirs):
                for number, p in enumerate(parameters):
                    seen = number != 1 or step % 2
                    p.grad = random(*p.shape, seed=10 * step + number) if seen else None
            for optimizer in optimizers:
                optimizer.step()
            for a, b in zip(own, theirs, strict=True):
                assert torch.equal(a, b)

    def test_groups_and_changing_rates(self) -> None:
        own, theirs = ([parameter(3), parameter(3, seed=1)] for _ in range(2))
        optimizers = [
            make([{"params": p[:1], "weight_decay": 0.2}, {"params": p[1:], "lr": 0.3}], lr=0.1)
            for make, p in ((RowAdam, own), (torch.optim.Adam, theirs))
        ]
        for step in range(4):
            for optimizer, parameters in zip(optimizers, (own, theirs), strict=True):
                for number, p in enumerate(parameters):
                    p.grad = random(3, seed=10 * step + number)
                optimizer.step()
                for group in optimizer.param_groups:
                    group["lr"] *= 0.5
        for a, b in zip(own, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


class TestSparse:
    def test_is_sparse_adam(self) -> None:
        """SparseAdam puts eps before the bias correction, Adam and RowAdam behind it; so eps is none here."""
        own, theirs = (parameter(ROWS, WIDTH) for _ in range(2))
        how: dict[str, Any] = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-200}
        optimizers = RowAdam([own], **how), torch.optim.SparseAdam([theirs], **how)
        for step, rows in enumerate(STEPS):
            values = random(len(rows), WIDTH, seed=step)
            for p, optimizer in zip((own, theirs), optimizers, strict=True):
                p.grad = sparse(rows, values.clone())
                optimizer.step()
            torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    def test_is_adam_where_every_row_is_touched(self, weight_decay: float) -> None:
        own, theirs = (parameter(ROWS, WIDTH) for _ in range(2))
        how: dict[str, Any] = {"lr": 0.05, "eps": 1e-3, "weight_decay": weight_decay}
        optimizers = RowAdam([own], **how), torch.optim.Adam([theirs], **how)
        rows = [*range(ROWS), 2]
        for step in range(5):
            values = random(len(rows), WIDTH, seed=step)
            own.grad = sparse(rows, values)
            theirs.grad = own.grad.to_dense()
            for optimizer in optimizers:
                optimizer.step()
            torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-14)

    def test_other_rows_stand_still(self) -> None:
        """Also those that were touched before, and also under a penalty."""
        table = parameter(ROWS, WIDTH)
        optimizer = RowAdam([table], lr=0.1, weight_decay=0.5)
        for step, rows in enumerate(STEPS):
            before = table.detach().clone()
            table.grad = sparse(rows, random(len(rows), WIDTH, seed=step))
            optimizer.step()
            changed = (table != before).any(1).nonzero()[:, 0].tolist()
            assert changed == sorted(set(rows))

    def test_first_step_by_hand(self) -> None:
        """The first step is lr along the gradient's sign, weight_decay times the weight included."""
        table = nn.Parameter(torch.tensor([[2.0], [3.0], [4.0], [0.0], [0.0], [0.0]], dtype=torch.float64))
        table.grad = sparse([0, 1], torch.tensor([[5.0], [-1.0]], dtype=torch.float64))
        RowAdam([table], lr=0.1, eps=0.0, weight_decay=0.5).step()
        # 5 + 0.5 * 2 > 0; -1 + 0.5 * 3 > 0
        torch.testing.assert_close(table[:3, 0], torch.tensor([1.9, 2.9, 4.0], dtype=torch.float64))

    def test_no_row_at_all(self) -> None:
        table = parameter(ROWS, WIDTH)
        table.grad = sparse([], torch.zeros(0, WIDTH, dtype=torch.float64))
        before = table.detach().clone()
        RowAdam([table], lr=0.1).step()
        assert torch.equal(table, before)


class TestState:
    def test_saved_and_loaded_goes_on_as_if_never_stopped(self) -> None:
        """Through a file that holds tensors and numbers only."""

        def make() -> tuple[list[nn.Parameter], RowAdam]:
            parameters = [parameter(ROWS, WIDTH), parameter(4, seed=1)]
            return parameters, RowAdam(parameters, lr=0.1, weight_decay=0.01)

        def advance(parameters: list[nn.Parameter], optimizer: RowAdam, steps: range) -> None:
            for step in steps:
                rows = STEPS[step]
                parameters[0].grad = sparse(rows, random(len(rows), WIDTH, seed=step))
                parameters[1].grad = random(4, seed=step + 50)
                optimizer.step()

        through, optimizer = make()
        advance(through, optimizer, range(5))
        stopped, optimizer = make()
        advance(stopped, optimizer, range(2))
        file = BytesIO()
        torch.save({"weights": [p.detach() for p in stopped], "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        resumed, optimizer = make()
        with torch.no_grad():
            for p, value in zip(resumed, saved["weights"], strict=True):
                p.copy_(value)
        optimizer.load_state_dict(saved["optimizer"])
        advance(resumed, optimizer, range(2, 5))
        for a, b in zip(resumed, through, strict=True):
            assert torch.equal(a, b)

    def test_closure(self) -> None:
        x = nn.Parameter(torch.tensor(3.0))
        optimizer = RowAdam([x], lr=0.5)

        def closure() -> float:
            optimizer.zero_grad()
            loss = (x**2).sum()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            return loss.item()

        assert optimizer.step(closure) == 9.0
        assert x.item() == pytest.approx(2.5)

    @pytest.mark.parametrize(
        ("wrong", "line"),
        [
            ({"lr": -1.0}, "lr must not be negative, got -1.0"),
            ({"eps": -1e-8}, "eps must not be negative, got -1e-08"),
            ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
            ({"betas": (1.0, 0.9)}, r"betas must lie in \[0, 1\), got \(1.0, 0.9\)"),
        ],
    )
    def test_values_that_cannot_learn(self, wrong: dict[str, Any], line: str) -> None:
        with pytest.raises(ValueError, match=line):
            RowAdam([parameter(2)], **wrong)


class TestClipping:
    @pytest.mark.parametrize("limit", [0.01, 1.0, 5.0, 1e6])
    def test_is_pytorchs(self, limit: float) -> None:
        rows = [0, 2, 2, 5]
        values = random(len(rows), WIDTH, seed=3)
        own, theirs = ([parameter(ROWS, WIDTH), parameter(4), parameter(2)] for _ in range(2))
        for parameters in (own, theirs):
            parameters[1].grad = random(4, seed=4)
        own[0].grad = sparse(rows, values.clone())
        theirs[0].grad = own[0].grad.to_dense()
        norm = clip_gradients(own, limit)
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs, limit), rtol=1e-12, atol=0)
        for a, b in zip(own[:2], theirs[:2], strict=True):
            assert a.grad is not None
            assert b.grad is not None
            torch.testing.assert_close(a.grad.to_dense(), b.grad, rtol=1e-12, atol=1e-15)
        assert own[0].grad.is_sparse
        assert own[2].grad is None

    def test_by_hand(self) -> None:
        p = nn.Parameter(torch.zeros(2))
        p.grad = torch.tensor([3.0, 4.0])
        assert clip_gradients([p], 2.5).item() == 5.0
        assert p.grad.tolist() == pytest.approx([1.5, 2.0], rel=1e-6)

    def test_nothing_to_clip(self) -> None:
        assert clip_gradients([parameter(2)], 1.0).item() == 0.0
        p = nn.Parameter(torch.zeros(2))
        p.grad = torch.zeros(2)
        assert clip_gradients([p], 1.0).item() == 0.0
        assert p.grad.tolist() == [0.0, 0.0]

    def test_within_the_limit_changes_no_bit(self) -> None:
        p = parameter(7)
        p.grad = random(7)
        before = p.grad.clone()
        clip_gradients([p], 100.0)
        assert torch.equal(p.grad, before)
