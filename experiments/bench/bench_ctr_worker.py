"""One side of the speed comparison, in a process of its own: this repository, or the peer.

``bench_ctr.py`` starts it, the peer's side with the peer's own interpreter; so this file imports
neither side before the request that names it. A request is one JSON line on standard input, and every request
is answered by one JSON line:

``{"do": "open", "side": "own" | "peer", ...}``    build loader and model(s)
``{"do": "measure", "seconds": s, "most": n, "train": true | false}``    batches until the time is up
``{"do": "profile", "batches": n}``    milliseconds and calls per step of each operator, per arm (own)
``{"do": "flops"}``    matrix arithmetic of one training step, per arm (own)
``{"do": "rate", "size": n}``    operations per second of a float32 matrix product (own)
"""

from __future__ import annotations

import importlib
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from answers import answer_requests, matrix_rate


class Side(ABC):
    """A loader and one model per arm, trained step by step. Subclasses set the attributes.

    Attributes:
        loader: Gives the batches of an epoch, loaded in this process.
        parameters: Trainable parameters of each arm.
    """

    loader: Iterable[Any]
    parameters: dict[str, int]
    _batches: Iterator[Any] | None = None
    _turn = 0

    @abstractmethod
    def step(self, arm: str, batch: Any) -> None:
        """One training step: forward, loss, backward, clipping, optimiser."""

    @abstractmethod
    def rows(self, batch: Any) -> int:
        """Rows of a batch."""

    def batches(self) -> Iterator[Any]:
        """Batches without end."""
        while True:
            yield from self.loader

    def measure(self, seconds: float, most: int, train: bool) -> list[dict[str, Any]]:
        """Time batches until ``seconds`` are over or there are ``most``; at least one.

        Every arm takes a step on the same batch, the first one in turn.

        Returns:
            Per batch its rows, the seconds of its loading and of each arm's step.
        """
        if self._batches is None:
            self._batches = self.batches()
        done: list[dict[str, Any]] = []
        begin = time.perf_counter()
        while not done or (len(done) < most and time.perf_counter() - begin < seconds):
            start = time.perf_counter()
            batch = next(self._batches)
            load = time.perf_counter() - start
            self._turn += 1
            arms = list(self.parameters)
            steps: dict[str, float] = {}
            for number in range(len(arms) if train else 0):
                arm = arms[(number + self._turn) % len(arms)]
                start = time.perf_counter()
                self.step(arm, batch)
                steps[arm] = time.perf_counter() - start
            done.append({"rows": self.rows(batch), "load": load, "steps": steps})
        return done


class Own(Side):
    """This repository: the training step that Lightning would run, without Lightning around it."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch

        from common.config import load
        from common.machine import keep_freed_memory
        from lain.data.module import CTRData
        from lain.training.build import build_model
        from lain.training.config import OptimConfig, TrainConfig
        from lain.training.module import CTRModule

        keep_freed_memory()
        torch.set_num_threads(request["threads"])
        base = request["sizes"] | {"data": request["data"]}
        base["model"] = {"name": request["backbone"], **request["model"]}
        base["history"] = {"max_length": request["max_length"]}
        optim = OptimConfig(batch_size=request["batch_size"], embedding_l2=request["embedding_l2"])
        data = CTRData(
            Path(request["data"]), max_length=request["max_length"], batch_size=request["batch_size"]
        )
        self.loader, self.clip = data.train_dataloader(), request["clip"]
        self.modules: dict[str, CTRModule] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.parameters = {}
        for arm in request["arms"]:
            torch.manual_seed(0)
            config = load(TrainConfig, None, base=base | {"length": {"preset": arm}})
            module = CTRModule(build_model(config, data.store.features), optim).train()
            self.modules[arm] = module
            self.optimizers[arm] = module.configure_optimizers()
            self.parameters[arm] = sum(p.numel() for p in module.parameters() if p.requires_grad)

    def rows(self, batch: Any) -> int:
        """Rows of a batch."""
        return len(batch)

    def step(self, arm: str, batch: Any) -> None:
        """One training step."""
        from lain.training.optim import clip_gradients

        module, optimizer = self.modules[arm], self.optimizers[arm]
        optimizer.zero_grad()
        loss = module.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        clip_gradients(module.parameters(), self.clip)
        optimizer.step()
        loss.item()

    def profile(self, batches: int) -> dict[str, Any]:
        """Milliseconds per step in each operator itself, and its calls; the arms take turns."""
        from torch.profiler import ProfilerActivity, profile

        self._batches = self._batches or self.batches()
        found: dict[str, dict[str, list[float]]] = {arm: {} for arm in self.modules}
        arms = list(self.modules)
        for number in range(batches):
            batch = next(self._batches)
            for arm in arms if number % 2 else arms[::-1]:
                with profile(activities=[ProfilerActivity.CPU]) as seen:
                    self.step(arm, batch)
                for event in seen.key_averages():
                    entry = found[arm].setdefault(event.key, [0.0, 0.0])
                    entry[0] += event.self_cpu_time_total / 1e3 / batches
                    entry[1] += event.count / batches
        return {"operators": found}

    def flops(self) -> dict[str, Any]:
        """Floating-point operations of the matrix products of one step, forward and backward.

        PyTorch's counter knows the dense products. A sparse one needs two operations per stored entry
        and column: its entries are the behaviours that there are, so nothing padded is counted.
        """
        import torch
        from torch.utils.flop_counter import FlopCounterMode, mm_flop

        def product(a: Any, b: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
            if a.layout is torch.sparse_csr:
                return 2 * int(a.values().numel()) * int(b.shape[-1])
            return int(mm_flop(a.shape, b.shape))

        def accumulated(_: Any, a: Any, b: Any, *rest: Any, **options: Any) -> int:
            return product(a, b, *rest, **options)

        def sampled(pattern: Any, a: Any, *_: Any, **__: Any) -> int:
            return 2 * int(pattern.values().numel()) * int(a.shape[-1])

        for count in (product, accumulated, sampled):
            vars(count)["_get_raw"] = True  # the counter then hands over tensors, not their shapes
        aten = torch.ops.aten
        counts = {
            aten.mm: product,
            aten.addmm: accumulated,
            aten.addmm_: accumulated,
            aten.sparse_sampled_addmm: sampled,
        }
        batch = next(self.batches())
        found = {}
        for arm in self.modules:
            with FlopCounterMode(display=False, custom_mapping=counts) as counter:
                self.step(arm, batch)
            found[arm] = counter.get_total_flops() / len(batch)
        return {"flops_per_row": found, "behaviours_per_row": float(batch.count.float().mean())}


class Peer(Side):
    """LongCTR from a FuxiCTR checkout, built through its own API in the order of its ``run_expid.py``."""

    def __init__(self, request: dict[str, Any]) -> None:
        import numpy as np

        # NumPy 2 dropped a name that the peer's imports need.
        np.unicode_ = np.str_  # type: ignore[attr-defined]  # it is the point that it is not there
        checkout, scratch = Path(request["checkout"]), Path(request["scratch"])
        sys.path[:0] = [str(checkout), str(checkout / "model_zoo" / "LongCTR")]
        import torch

        torch.set_num_threads(request["threads"])
        data, name = Path(request["data"]), request["backbone"].upper()
        params: dict[str, Any] = {
            "model": name,
            "model_id": name,
            "model_root": str(scratch / "checkpoints"),
            "dataset_id": "bench",
            "data_root": str(scratch),
            "data_format": "parquet",
            "rebuild_dataset": False,
            "train_data": str(data / "train.parquet"),
            "user_info": str(data / "user_info.parquet"),
            "item_info": str(data / "item_info.parquet"),
            "feature_cols": request["columns"],
            "label_col": {"name": "is_click", "dtype": "float"},
            "task": "binary_classification",
            "loss": "binary_crossentropy",
            "optimizer": "adam",
            "metrics": ["AUC"],
            "verbose": 0,
            "gpu": -1,
            "seed": 0,
            "shuffle": True,
            "num_workers": 0,
            "batch_size": request["batch_size"],
            "max_len": request["max_length"],
            "embedding_regularizer": request["embedding_l2"],
            **request["sizes"],
        }
        preprocess = importlib.import_module("fuxictr.preprocess")
        processor = preprocess.FeatureProcessor(**params)
        params["train_data"], *_ = preprocess.build_dataset(processor, **params)
        folder = scratch / "bench"
        features = importlib.import_module("fuxictr.features").FeatureMap("bench", str(folder))
        features.load(str(folder / "feature_map.json"), params)
        self.model: Any = getattr(importlib.import_module(f"{name}.{name}"), name)(features, **params)
        params["data_loader"] = importlib.import_module("longctr_dataloader").LongCTRDataLoader
        loaders = importlib.import_module("fuxictr.pytorch.dataloaders")
        self.loader, _ = loaders.RankDataLoader(features, stage="train", **params).make_iterator()
        self.model._max_gradient_norm, self.model._batch_index = request["clip"], 0
        self.model.train()
        self.parameters = {"peer": sum(p.numel() for p in self.model.parameters() if p.requires_grad)}

    def rows(self, batch: Any) -> int:
        """Rows of a batch."""
        return len(batch[0]["seq_len"])

    def step(self, arm: str, batch: Any) -> None:
        """One training step, as in its ``train_epoch``."""
        self.model.train_step(batch).item()


class Answers:
    """Answers requests, one after the other."""

    def __init__(self) -> None:
        self._side: Any = None

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request."""
        match request["do"]:
            case "open":
                self._side = (Own if request["side"] == "own" else Peer)(request)
                return {"parameters": self._side.parameters}
            case "measure":
                return {"batches": self._side.measure(request["seconds"], request["most"], request["train"])}
            case "flops":
                return dict(self._side.flops())
            case "profile":
                return dict(self._side.profile(request["batches"]))
            case _:
                return {"rate": matrix_rate(request["size"])}


if __name__ == "__main__":
    answer_requests(Answers())
