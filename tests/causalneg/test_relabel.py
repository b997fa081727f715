"""Relabelling: false negatives dropped or added, the judge measured by truth, a cross-encoder's scores."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner

from causalneg.cli import main
from causalneg.data import Dataset, read_dataset, read_examples
from causalneg.data.schema import Document, Example, Negative, Passage, Query, Reason, Verdict
from causalneg.generation.jobs import Failure, Job, done
from causalneg.generation.journal import Journal
from causalneg.generation.relabel import relabel
from causalneg.generation.verification.cross_encoder import CrossEncoderJudge
from causalneg.generation.verification.judge import Judge, Question
from tiny_retrieval import DOCUMENTS, causalneg, tiny_data

library: Any = transformers


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny one with random weights that tells the words of the tiny corpus apart."""
    path = tmp_path_factory.mktemp("cross-encoder")
    known = sorted({word for document in DOCUMENTS for word in re.findall(r"\w+", document.text.lower())})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *known]
    (path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = library.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, num_labels=1, initializer_range=1.0,
    )  # fmt: skip
    library.BertForSequenceClassification(config).save_pretrained(path)
    library.BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)
    return path


class ByTruth(Judge):
    """Knows which documents answer, and errs where it is told to; says nothing of some."""

    name = "by-truth"

    def __init__(self, says: dict[str, Reason | None]) -> None:
        self.says = says

    @property
    def identity(self) -> dict[str, str]:
        return {"judge": self.name}

    def judge(self, question: Question) -> Job[Verdict | Failure]:
        reason = self.says[question.passage]
        return done(Failure("mute") if reason is None else Verdict(reason=reason, judge=self.name))


def test_relabelling_drops_or_adds_what_answers_and_is_measured_by_truth() -> None:
    texts = {"a": "alpha", "b": "beta", "c": "gamma", "d": "delta", "e": "epsilon", "f": "zeta"}
    documents = [Document(id=id, text=text) for id, text in texts.items()]
    query = Query(id="q", text="which letter")
    dataset = Dataset(Path("letters"), documents, {"q": query})
    mined = [Negative(document_id=id, source="mined", backend="bm25") for id in "bcdef"]
    written = Negative(text="beta", source="generated", backend="rules")
    example = Example(query=query, positives=[Passage(document_id="a")], negatives=[*mined, written])
    judge = ByTruth(
        {"beta": "answers", "gamma": "partly answers", "delta": "valid", "epsilon": "valid", "zeta": None}
    )
    truth = {"q": {"a": 1, "b": 1, "e": 2, "c": 0}}  # gamma is called false and is not; epsilon is missed
    for add, positives in ((False, ["a"]), (True, ["a", "b"])):
        with Journal() as journal:
            (made,), counts = relabel(
                [example], dataset, judge, journal.ledger("judge", judge.identity), add=add, truth=truth
            )
        assert [passage.document_id for passage in made.positives] == positives
        assert [negative.document_id for negative in made.negatives] == ["d", "e", None]
        assert (counts.negatives, counts.false, counts.unjudged, counts.added) == (5, 2, 1, int(add))
        assert (counts.known, counts.truly_false, counts.called, counts.rightly) == (4, 2, 2, 1)
        assert (counts.precision, counts.recall) == (0.5, 0.5)


def test_a_cross_encoder_relabels_a_set_and_leaves_its_scores(cross_encoder: Path, tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data")
    mined, out = tmp_path / "mined.jsonl", tmp_path / "relabelled.jsonl"
    causalneg("mine", data, mined, "--count", 3, "--depth", 8, "--quiet")
    shown = causalneg("relabel", data, mined, out, "--cross-encoder", cross_encoder, "--truth", "test")
    assert "| false, by truth" in shown.stdout
    judge = CrossEncoderJudge(model=str(cross_encoder))
    content = {document.id: document.content for document in read_dataset(data, splits=[]).documents}
    before = {example.query.id: example for example in read_examples(mined)}
    for example in read_examples(out):
        query = example.query.text
        (bound,) = judge.scores([(query, content[str(example.positives[0].document_id)])])
        assert example.positives[0].teacher == pytest.approx(bound, abs=1e-5)
        kept, scores = [], []
        for negative in before[example.query.id].negatives:
            (score,) = judge.scores([(query, content[str(negative.document_id)])])
            if score < bound:
                kept.append(negative.document_id)
                scores.append(score)
        assert [negative.document_id for negative in example.negatives] == kept
        assert [negative.teacher for negative in example.negatives] == pytest.approx(scores, abs=1e-5)
    figures = json.loads((tmp_path / "relabelled.relabel.json").read_text())
    assert figures["negatives"] == sum(len(example.negatives) for example in before.values())
    refused = CliRunner().invoke(main, ["relabel", str(data), str(mined), str(out)])
    assert refused.exit_code == 2
    assert "name a judge" in refused.stderr
