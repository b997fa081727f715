"""A trained run as files for other runtimes: safetensors, ``torch.export`` and ONNX, checked on the spot."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import BackendError, ConfigError
from common.files import atomic_folder, atomic_write
from common.report.tables import markdown_table
from common.training.record import Record
from common.training.run import CONFIG_FILE
from lain.data.catalog import CATALOG
from lain.data.schema import RESERVED, Feature
from lain.formats.log.encode import FOLDER as ENCODING
from lain.model import CTRModel
from lain.ops.spans import Spans
from lain.serving.catalog import open_catalog
from lain.serving.dense import DenseModel
from lain.training.run import FEATURES_FILE, load_model, model_features

ONNX_FILE, PROGRAM_FILE, WEIGHTS_FILE, CARD = "model.onnx", "model.pt2", "model.safetensors", "README.md"
TOLERANCE = 1e-5
"""Largest difference to the run's own logits (relative above 1) and probabilities."""

HISTORIES, CANDIDATES = (0, 1, 2, 7, 60, 230), (1, 2, 33)
"""Behaviours and candidates of the requests that are compared."""

Arrays = dict[str, Shaped[np.ndarray, "rows ..."]]


@dataclass(frozen=True)
class Input:
    """An input of the exported model.

    Args:
        name: Its name.
        rows: What its rows are: ``behaviours``, ``candidates`` or ``1``.
        dtype: Type of its values.
        width: Values per row; None for one alone.
        below: Values lie in 0 to this - 1; 0: any number.
        meaning: What it is.
    """

    name: str
    rows: str
    dtype: type[np.generic]
    width: int | None
    below: int
    meaning: str

    @property
    def shape(self) -> str:
        """Its shape, for readers."""
        return f"[{self.rows}]" if self.width is None else f"[{self.rows}, {self.width}]"


class ExportedModel(nn.Module):
    """A :class:`~lain.serving.dense.DenseModel` of one flat list of tensors.

    Args:
        dense: The predictor.
        features: Features of the data that it was trained on.
        counts: Number of items, padding included, and of users.
    """

    def __init__(self, dense: DenseModel, features: Sequence[Feature], counts: Mapping[str, int]) -> None:
        super().__init__()
        self.dense = dense
        items = counts["item"]
        self.inputs = [
            Input("history", "behaviours", np.int64, None, items, "items, oldest first; 0 where masked"),
            Input("mask", "behaviours", np.bool_, None, 2, "which of them are behaviours"),
            Input("length", "1", np.int64, None, 0, "true length of the history"),
            Input("candidates", "candidates", np.int64, None, items, "items that are asked about"),
        ]
        if dense.names["user"]:
            self.inputs.append(Input("user", "1", np.int64, None, counts["user"], "index of the user"))
        context = [f for f in dense.model.context.features if f.source == "context"]
        columns = dense.model.columns.features if dense.model.columns is not None else ()
        for prefix, rows, some in (("context", "candidates", context), ("column", "behaviours", columns)):
            for f in some:
                dtype: type[np.generic] = np.int64 if f.size else np.float32
                meaning = f"{f.name} of the {'moment' if prefix == 'context' else 'behaviour'}, encoded"
                self.inputs.append(Input(f"{prefix}.{f.name}", rows, dtype, f.row_width, f.size, meaning))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities of the inputs, in their order."""
        given = dict(zip([i.name for i in self.inputs], tensors, strict=True))
        parts: dict[str, dict[str, Tensor]] = {"context": {}, "column": {}}
        for name, tensor in given.items():
            prefix, point, feature = name.partition(".")
            if point:
                parts[prefix][feature] = tensor
        found: tuple[Tensor, Tensor] = self.dense(
            given["history"],
            given["mask"],
            given["length"],
            given["candidates"],
            given.get("user", given["length"]),
            parts["context"],
            parts["column"],
        )
        return found

    def example(self, behaviours: int, candidates: int, seed: int = 0) -> Arrays:
        """Inputs of a made-up request, some behaviours masked.

        Args:
            behaviours: Rows of the history.
            candidates: Candidates.
            seed: Of what is drawn.
        """
        rng = np.random.default_rng(seed)
        rows = {"behaviours": behaviours, "candidates": candidates, "1": 1}
        found: Arrays = {}
        for one in self.inputs:
            shape = (rows[one.rows],) if one.width is None else (rows[one.rows], one.width)
            if one.name == "mask":
                found[one.name] = rng.random(shape) < 0.9
            elif one.name == "length":
                found[one.name] = np.array([behaviours + 3])
            elif one.below:
                found[one.name] = rng.integers(0, one.below, shape)
            else:
                found[one.name] = rng.normal(size=shape).astype(np.float32)
        for items in ("history", "candidates"):
            found[items] = np.maximum(found[items], min(1, self.inputs[0].below - 1))
        return found

    def tensors(self, inputs: Arrays) -> tuple[Tensor, ...]:
        """Inputs as tensors, in order."""
        return tuple(torch.from_numpy(inputs[one.name]) for one in self.inputs)


@torch.no_grad()
def ragged_logits(exported: ExportedModel, inputs: Arrays) -> Float[np.ndarray, " candidates"]:
    """The logits that the run's own model gives for the inputs of an exported one.

    Args:
        exported: The exported model.
        inputs: Its inputs.
    """
    dense = exported.dense
    model: CTRModel = dense.model
    kept = np.flatnonzero(inputs["mask"])[-dense.max_length :]
    history, candidates = (torch.from_numpy(inputs[n]) for n in ("history", "candidates"))
    history = nn.functional.pad(history[kept], (0, 1))  # one row more than behaviours, so that there is one
    parts: dict[str, dict[str, Tensor]] = {"context": {}, "column": {}}
    for name, value in inputs.items():
        prefix, point, feature = name.partition(".")
        if point:
            parts[prefix][feature] = torch.from_numpy(value)
    context = parts["context"]
    columns = {n: torch.cat([x[kept], x.new_zeros(1, *x.shape[1:])]) for n, x in parts["column"].items()}
    length = torch.from_numpy(inputs["length"])
    count = len(candidates)
    if "user" in inputs:
        user = dense.rows("user", torch.from_numpy(inputs["user"]))
        context |= {name: value.expand(count, *value.shape[1:]) for name, value in user.items()}
    table = model.vectors(history, dense.rows("item", history), columns)
    target = model.vectors(candidates, dense.rows("item", candidates))
    spans = Spans(torch.tensor([0, len(kept)]), torch.arange(len(kept)))
    memory = model.backbone.encode(table, spans, model.length(length, table.dtype))
    memory = memory.take(torch.zeros(count, dtype=torch.long))
    state = model.length(length.repeat(count), table.dtype)
    return model.score(memory, target, context, state).logit.numpy()


def export_run(run: Path, out: Path, *, data: Path | None = None) -> list[str]:
    """Write a run's model into a new folder.

    ``model.safetensors`` (weights), ``model.pt2`` (``torch.export``) and ``model.onnx``, which take one user
    and any number of candidates; config, vocabularies, and a README with the inputs. Both programs are
    compared with the run's own model, over histories and candidates of many lengths, before the folder is
    there.

    Args:
        run: The run folder.
        out: The folder to make.
        data: Prepared data, for a run that does not keep its items' features.

    Returns:
        What was compared, a line each.

    Raises:
        ConfigError: The backbone has no form of plain tensors, or a package is missing.
        DataError: The folder is no run, or ``out`` is there and not empty.
        BackendError: A runtime gives other scores.
    """
    try:
        import onnx  # noqa: F401  # torch needs both to write ONNX
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"lain export needs onnx, onnxruntime and onnxscript ({error}); pip install "
            "'causalneg-lain[export]'"
        ) from None
    config, model, record = load_model(run)
    features = model_features(run)
    tables = open_catalog(run, features, data).tables()
    dense = DenseModel(model, tables, max_length=config.history.max_length)
    exported = ExportedModel(dense, features, _counts(features, tables)).eval().requires_grad_(False)
    with atomic_folder(out) as folder:
        program = _programs(exported, folder)
        session = onnxruntime.InferenceSession(str(folder / ONNX_FILE), providers=["CPUExecutionProvider"])
        lines = _compare(exported, program, session)
        save_file({n: t.contiguous().clone() for n, t in model.state_dict().items()}, folder / WEIGHTS_FILE)
        for name in (CONFIG_FILE, FEATURES_FILE):
            shutil.copyfile(run / name, folder / name)
        for name in (ENCODING, CATALOG):
            if (run / name).is_dir():
                shutil.copytree(run / name, folder / name)
        atomic_write(folder / CARD, model_card(run.resolve().name, exported, record, lines))
    return lines


def _counts(features: Sequence[Feature], tables: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Items and users that have an index."""
    counts = {}
    for source in ("item", "user"):
        own = [f.size for f in features if f.source == source and f.name in RESERVED]
        counts[source] = min([*own, *(len(table) for table in tables[source].values())], default=1)
    return counts


def _programs(exported: ExportedModel, folder: Path) -> nn.Module:
    """Write ``model.pt2`` and ``model.onnx``."""
    dims: dict[str, Any] = {
        "behaviours": torch.export.Dim("behaviours", min=0, max=1 << 20),
        "candidates": torch.export.Dim("candidates", min=0, max=1 << 20),
    }
    shapes = tuple({0: dims[one.rows]} if one.rows in dims else {} for one in exported.inputs)
    arguments = exported.tensors(exported.example(11, 5))
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and onnxscript, about themselves
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            program = torch.export.export(exported, arguments, dynamic_shapes=(shapes,), strict=False)
            torch.export.save(program, folder / PROGRAM_FILE)
            torch.onnx.export(
                program,
                f=str(folder / ONNX_FILE),
                input_names=[one.name for one in exported.inputs],
                output_names=["logit", "score"],
                dynamo=True,
                verbose=False,
                external_data=sum(t.nbytes for t in exported.state_dict().values()) > 1 << 30,
            )
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
    return torch.export.load(folder / PROGRAM_FILE).module()


def _compare(exported: ExportedModel, program: nn.Module, session: Any) -> list[str]:
    """Largest differences of both programs to the run's own model."""
    worst = {"torch.export": 0.0, "onnxruntime": 0.0}
    there = {one.name for one in session.get_inputs()}
    for seed, behaviours in enumerate(HISTORIES):
        for candidates in CANDIDATES:
            inputs = exported.example(behaviours, candidates, seed)
            wanted = ragged_logits(exported, inputs)
            found = {
                "onnxruntime": session.run(
                    ["logit", "score"], {n: x for n, x in inputs.items() if n in there}
                )
            }
            if min(behaviours, candidates) > 1:  # which torch.export asks for
                with torch.no_grad():
                    found["torch.export"] = [x.numpy() for x in program(*exported.tensors(inputs))]
            for name, (logit, score) in found.items():
                sigmoid = 1 / (1 + np.exp(-wanted.astype(np.float64)))
                gap = max(
                    float((np.abs(logit - wanted) / np.maximum(1, np.abs(wanted))).max()),
                    float(np.abs(score - sigmoid).max()),
                )
                worst[name] = max(worst[name], gap)
                if not gap <= TOLERANCE:
                    raise BackendError(
                        f"export: {name} differs by {gap:.2g} from the run's own model (a history of "
                        f"{behaviours}, {candidates} candidates), more than {TOLERANCE:g}"
                    )
    requests = len(HISTORIES) * len(CANDIDATES)
    return [f"{name}: differs by at most {gap:.1e} over {requests} requests" for name, gap in worst.items()]


def model_card(name: str, exported: ExportedModel, record: Record, lines: Sequence[str]) -> str:
    """What the folder holds, for who did not train it.

    Args:
        name: Name of the run.
        exported: The model.
        record: Of the run.
        lines: What was compared.
    """
    model = record.config.get("model", {})
    about = {
        "run": name,
        "backbone": model.get("name"),
        "length": record.config.get("length", {}).get("preset"),
        "trained on": f"{record.config.get('data')} (fingerprint {record.inputs.get('data')})",
        "finished": record.finished,
        "seed": record.seed,
        "weights": f"{record.parameters:,}" if record.parameters else "",
    }
    metrics = [
        [key, f"{value:.5f}"]
        for key, value in record.metrics.items()
        if value is not None
        and key.split("/")[0] == "test"
        and key.split("/")[1] in ("auc", "logloss", "gauc")
    ]
    inputs = [[f"`{i.name}`", i.dtype.__name__, i.shape, i.meaning] for i in exported.inputs]
    feed = ", ".join(f'"{i.name}": ...' for i in exported.inputs)
    parts = [
        f"# {name}: click-through prediction by history and its length",
        *(f"- {key}: {value}" for key, value in about.items()),
        "",
        "One user and any number of candidates in, a `logit` and a click probability (`score`) of each out. "
        f"The last {exported.dense.max_length:,} behaviours are read.",
        "",
        "```python",
        "import onnxruntime",
        'session = onnxruntime.InferenceSession("model.onnx")',
        f"logit, score = session.run(None, {{{feed}}})",
        "```",
        "",
        markdown_table(["input", "type", "shape", "meaning"], inputs),
        "`model.pt2` takes the same inputs in this order (`torch.export.load(...).module()`), and at least "
        "two behaviours, masked ones counted, and two candidates: pad them. Pads of `history` are 0 and "
        "masked.",
        "",
        "Items are numbered from 1 in the order of `encoding/item.parquet`, users from 0 in that of "
        "`encoding/user.parquet`; the number behind the last is for unknown ones. `encoding/` also holds the "
        "vocabularies and scales of all other values. A run on other data (`catalog/`) knows items and users "
        "by their numbers there. In Python `lain.Scorer` does all this from raw values.",
        "",
        "Compared with the run's own model:",
        *(f"- {line}" for line in lines),
        "",
        markdown_table(["metric", "value"], metrics) if metrics else "",
        "Scores are of the clicks that the log shows, under the policy that showed them; they are no measure "
        "of worth, and drift as items and users do.",
        "",
        "```json",
        json.dumps(record.versions, indent=1),
        "```",
    ]
    return "\n".join(parts) + "\n"
