"""`lain export`: the model for other runtimes gives the run's own scores."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from common.errors import ConfigError
from lain.backbones import BACKBONES, Memory
from lain.length import PRESETS, LengthOptions
from lain.model import CTRModel
from lain.ops.spans import Spans
from lain.serving.dense import FORMS, DenseModel, embed
from lain.serving.scorer import Scorer
from lain.training.run import load_model
from small_model import CATEGORY, HOURS, ITEMS, SAMPLES, make_model, stir
from tiny_log import make_log_run

EXPORTED = [name for name in BACKBONES if BACKBONES[name] in FORMS]
ARMS = ["base", "lain", "lain-published", "lain-plus", "bucket-temperature"]
TABLES = {"item": {"category": np.array(CATEGORY)}, "user": {"user_id": np.arange(4)}}


def ragged(model: CTRModel, history: list[int], length: int, targets: list[int], user: int) -> torch.Tensor:
    """Logits of the model itself."""
    count = len(targets)

    def vectors(items: list[int]) -> torch.Tensor:
        index = torch.tensor(items, dtype=torch.long)
        return model.vectors(index, {"category": torch.tensor(CATEGORY)[index]})

    table = vectors([*history, 0])
    spans = Spans(torch.tensor([0, len(history)]), torch.arange(len(history)))
    memory: Memory = model.backbone.encode(table, spans, model.length(torch.tensor([length]), table.dtype))
    features = {"user_id": torch.full((count,), user), "hour": torch.arange(count) % HOURS}
    state = model.length(torch.full((count,), length), table.dtype)
    return model.score(
        memory.take(torch.zeros(count, dtype=torch.long)), vectors(targets), features, state
    ).logit


@torch.no_grad()
@pytest.mark.parametrize("preset", ARMS)
@pytest.mark.parametrize("name", EXPORTED)
def test_plain_tensors_are_the_model(name: str, preset: str) -> None:
    """In double precision, over ragged histories, padded anywhere, repeated items among them."""
    model = stir(make_model(name, LengthOptions(**PRESETS[preset]))).eval()
    dense = DenseModel(model, TABLES, max_length=8)
    targets = list(range(1, ITEMS))
    hour = torch.arange(len(targets)) % HOURS
    for sample in SAMPLES:
        history = list(sample.history)
        wanted = ragged(model, history[-8:], sample.length, targets, sample.context["user_id"])
        for pads in ((), (0,), (0, 2, 3)):
            padded, mask = list(history), [True] * len(history)
            for place in pads:
                padded.insert(place, 0)
                mask.insert(place, False)
            logit, score = dense(
                torch.tensor(padded, dtype=torch.long),
                torch.tensor(mask, dtype=torch.bool),
                torch.tensor([sample.length]),
                torch.tensor(targets),
                torch.tensor([sample.context["user_id"]]),
                {"hour": hour},
                {},
            )
            torch.testing.assert_close(logit, wanted, rtol=1e-10, atol=1e-11)
            torch.testing.assert_close(score, wanted.sigmoid(), rtol=1e-10, atol=1e-11)


def test_the_mean_of_a_list_leaves_padding_out() -> None:
    from lain.data.schema import Feature
    from lain.layers.embedding import FeatureEmbedding

    features = [Feature("tags", "item", "list", 6, 3), Feature("image", "item", "vector", 0, 2)]
    layer = FeatureEmbedding(features, dim=4)
    values = {"tags": torch.tensor([[1, 2, 0], [5, 0, 0], [0, 0, 0]]), "image": torch.randn(3, 2)}
    torch.testing.assert_close(embed(layer, values), layer(values))


def test_a_backbone_without_such_a_form_is_refused() -> None:
    model = make_model("dien", LengthOptions())
    with pytest.raises(ConfigError, match="the backbone DIEN has no form of plain tensors; din, sim, sdim"):
        DenseModel(model, TABLES, max_length=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_log_run(tmp_path_factory.mktemp("export"), "fit.max_steps=20")[0]


def export(run: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """The real command: torch traces the model, which no test's own checks of shapes must disturb."""
    command = [sys.executable, "-m", "lain.cli", "export", str(run), str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_onnx_scores_as_the_scorer(run: Path, tmp_path: Path) -> None:
    """Raw ids through the files of the folder alone, against lain.Scorer."""
    onnxruntime: Any = pytest.importorskip("onnxruntime", reason="needs the extra export")
    pytest.importorskip("onnxscript", reason="needs the extra export")
    out = tmp_path / "model"
    done = export(run, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(out)]
    assert "onnxruntime: differs by at most" in done.stderr
    names = {"README.md", "config.yaml", "encoding", "features.json"}
    assert {p.name for p in out.iterdir()} == names | {"model.onnx", "model.pt2", "model.safetensors"}
    again = export(run, out)
    assert (again.returncode, "is not empty" in again.stderr) == (2, True)

    weights = load_file(out / "model.safetensors")
    assert all(torch.equal(weights[n], t) for n, t in load_model(run)[1].state_dict().items())

    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    scorer = Scorer(run)
    items = pl.read_parquet(out / "encoding" / "item.parquet")["id"].to_list()
    users = pl.read_parquet(out / "encoding" / "user.parquet")["id"].to_list()
    history, candidates = ["3", "7", "unheard of"], ["5", "11", "2", "new"]
    columns = {"place": ["a", None, "b"], "when": [1_700_000_000, 1_700_000_050, 1_700_009_000]}
    context = {"place": "a", "price": 0.5, "when": 1_700_100_000}
    wanted = scorer.score(scorer.encode(history, user="u3", columns=columns), candidates, context)
    names_of = ["place", "gap"]
    codes = scorer.catalog.columns(names_of, columns, 3)
    moment = scorer.catalog.context(context, 4)

    def number(item: str) -> int:
        return 1 + (items.index(item) if item in items else len(items))

    fed = {
        "history": np.array([number(i) for i in history]),
        "mask": np.ones(3, bool),
        "length": np.array([3]),
        "candidates": np.array([number(i) for i in candidates]),
        "user": np.array([users.index("u3")]),
    }
    fed |= {f"column.{n}": codes[n].astype(np.int64) for n in names_of}
    wants = {i.name: i.type for i in session.get_inputs()}
    for name, value in moment.items():
        kind = np.float32 if wants[f"context.{name}"] == "tensor(float)" else np.int64
        fed[f"context.{name}"] = value.astype(kind)
    assert fed.keys() == wants.keys()
    _, score = session.run(None, fed)
    np.testing.assert_allclose(score, wanted, atol=1e-5, rtol=0)
    card = (out / "README.md").read_text()
    assert all(f"`{name}`" in card for name in wants)


@pytest.mark.slow
def test_a_run_on_indices_is_exported_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra export")
    from tiny_log import lain, train

    lain("world", tmp_path / "world", "--users", 20, "--seed", 3)
    run = train(tmp_path / "world", "model.name=din", "length.preset=lain", "name=din")
    done = export(run, tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "catalog").is_dir()
    shutil.rmtree(tmp_path / "model")
    done = export(train(tmp_path / "world", "model.name=dien", "name=dien"), tmp_path / "model")
    assert (done.returncode, "DIEN has no form of plain tensors" in done.stderr) == (2, True)
    assert not (tmp_path / "model").exists()
