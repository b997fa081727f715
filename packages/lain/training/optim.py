"""Adam that touches only the rows a batch used, for tables too large to sweep at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class RowAdam(torch.optim.Optimizer):
    """Adam for dense gradients, and its lazy form for row-sparse ones.

    Dense parameters get PyTorch's own Adam. A parameter with a sparse gradient has moments and
    weights changed in the touched rows alone, with the bias correction of the global step, as in
    :class:`torch.optim.SparseAdam`; rows that no batch mentions stand still, where Adam would let
    their moments decay and move on. ``weight_decay`` is Adam's L2 penalty (added to the gradient);
    for a sparse gradient it is the mini-batch aware penalty of DIN (KDD 2018, eq. 6), on the touched
    rows.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: L2 penalty: weight_decay / 2 times the squared norm.

    Raises:
        ValueError: A negative value, or a beta outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), got {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient; gives what the closure gave, or None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            dense = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                if parameter.grad.is_sparse:
                    state["step"] += 1
                    _step_rows(parameter, parameter.grad.coalesce(), state, group)
                else:
                    dense.append(parameter)
            if dense:
                states = [self.state[p] for p in dense]
                on_cpu = all(p.device.type == "cpu" for p in dense)
                adam(
                    dense,
                    [p.grad for p in dense if p.grad is not None],
                    [s["exp_avg"] for s in states],
                    [s["exp_avg_sq"] for s in states],
                    [],
                    [s["step"] for s in states],
                    foreach=not on_cpu,
                    fused=on_cpu,
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
        return loss


def _step_rows(parameter: nn.Parameter, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Adam on the rows of a coalesced sparse gradient."""
    rows, change = grad.indices()[0], grad.values()
    beta1, beta2 = group["betas"]
    step = state["step"].item()
    weight = parameter[rows]
    if group["weight_decay"]:
        change = change.add(weight, alpha=group["weight_decay"])
    mean = state["exp_avg"][rows].lerp_(change, 1 - beta1)
    square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(change, change, value=1 - beta2)
    state["exp_avg"][rows] = mean
    state["exp_avg_sq"][rows] = square
    root = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
    parameter[rows] = weight.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1**step))


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients, row-sparse ones included, so that their joint norm is at most ``limit``.

    Returns:
        The norm before.
    """
    values = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad.values())
        else:
            values.append(parameter.grad)
    if not values:
        return torch.tensor(0.0)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(values)))
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(values, scale)
    return norm
