"""The local model and the cross-encoder, both tiny and made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from causalneg.data.schema import Query, Verdict
from causalneg.generation.journal import Journal
from causalneg.generation.verification.cross_encoder import CrossEncoderJudge
from causalneg.generation.verification.judge import Judge, Question, ask
from causalneg.generation.writers.prompts import Rewritten
from causalneg.llm.answers import Attempts
from causalneg.llm.chat import ChatFailure, ChatRequest, ChatResult, Message, complete
from causalneg.llm.tiny_model import make_model, save, train_tokenizer
from causalneg.llm.transformers_local import SeededSampling, TransformersBackend
from common.errors import BackendError, ConfigError

library: Any = transformers

ANSWER = '{"text": "Ann won."}'
PROMPTS = ("Who won?", "Who won the race that began two hours late?", "Say who.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned by heart to give one answer to everything."""
    tokenizer = train_tokenizer([*PROMPTS, ANSWER] * 3, vocabulary=300)
    model = make_model(tokenizer, width=32, layers=1, heads=2, inner=64, context=128)
    texts = []
    for prompt in PROMPTS:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": ANSWER}]
        texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
    return save(model, tokenizer, tmp_path_factory.mktemp("model"))


def request(number: int, prompt: str, **more: float | int) -> ChatRequest:
    values = {"max_tokens": 40, "temperature": 0.0} | more
    return ChatRequest(f"{number}", (Message("user", prompt),), Rewritten, {}, **values)  # type: ignore[arg-type]


def test_a_local_model_answers_alone_and_in_batches_alike(folder: Path) -> None:
    asked = [request(n, prompt) for n, prompt in enumerate(PROMPTS * 2)]
    together = TransformersBackend(model=str(folder), batch=4, device="cpu")
    outcomes = complete(together, asked)
    assert [o.key for o in outcomes] == [r.key for r in asked]
    for outcome in outcomes:
        assert isinstance(outcome, ChatResult)
        assert outcome.value == Rewritten(text="Ann won.")
        assert not outcome.repaired
        assert outcome.completion_tokens == together.count(ANSWER)
    assert complete(TransformersBackend(model=str(folder), batch=1, device="cpu"), asked) == outcomes


def test_sampled_answers_depend_on_their_seed_and_not_on_the_batch(folder: Path) -> None:
    # So hot that what comes is noise, which no shape fits: the same noise in any company.
    hot = [request(n, PROMPTS[n % 3], temperature=9.0, seed=n % 4, max_tokens=12) for n in range(8)]
    backend = TransformersBackend(model=str(folder), device="cpu")
    asked = [(Attempts(r, 1), backend._prompt(r)) for r in hot]
    together = backend._write(asked)
    assert [backend._write([one])[0] for one in asked] == together
    assert len({text for text, _, _ in together}) > 4


def test_a_cut_answer_is_asked_for_again_and_fails_in_the_end(folder: Path) -> None:
    backend = TransformersBackend(model=str(folder), attempts=3, device="cpu")
    (outcome,) = complete(backend, [request(0, PROMPTS[0], max_tokens=2)])
    # 2, then 4, then 8 tokens: the third attempt has room for it.
    assert isinstance(outcome, ChatResult)
    assert outcome.attempts == 3
    assert outcome.completion_tokens == 6 + backend.count(ANSWER)
    (outcome,) = complete(
        TransformersBackend(model=str(folder), attempts=1, device="cpu"), [request(0, "?", max_tokens=2)]
    )
    assert isinstance(outcome, ChatFailure)
    assert outcome.kind == "cut answer"


def test_a_prompt_longer_than_the_context_is_refused_and_the_others_go_on(folder: Path) -> None:
    backend = TransformersBackend(model=str(folder), device="cpu")
    assert backend.context == 128
    long, short = complete(backend, [request(0, "who " * 200), request(1, PROMPTS[0])])
    assert isinstance(long, ChatFailure)
    assert long.kind == "context too long"
    assert isinstance(short, ChatResult)


def test_the_draws_follow_the_softmax_of_what_top_p_leaves() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    wanted = (logits / 0.8).softmax(0)
    kept = wanted.clone()
    kept[3] = 0.0  # the first three hold more than 95 %
    assert wanted[:2].sum() < 0.95 < wanted[:3].sum()
    kept = kept / kept.sum()
    rows = 2000
    asked = [request(n, "", temperature=0.8, top_p=0.95, seed=n) for n in range(rows)]
    chosen = SeededSampling(asked)(torch.zeros(rows, 1, dtype=torch.long), logits.repeat(rows, 1)).argmax(1)
    shares = torch.bincount(chosen, minlength=4) / rows
    # Four standard deviations of a share.
    assert torch.all((shares - kept).abs() <= 4 * (kept * (1 - kept) / rows).sqrt())


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.0]])
    process = SeededSampling([request(0, "", temperature=0.0, seed=1)])
    assert process(torch.zeros(1, 1, dtype=torch.long), logits).argmax() == 1


def test_what_is_no_model_is_told(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BackendError, match="cannot be loaded"):
        TransformersBackend(model=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="batch: must be at least 1, got 0"):
        TransformersBackend(model=str(folder), batch=0)


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cross-encoder")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "who",
        "won",
        "ann",
        "bo",
        "the",
        "race",
        "late",
        ".",
    ]
    (path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = library.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=1.0,
    )
    library.BertForSequenceClassification(config).save_pretrained(path)
    library.BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)
    return path


def test_a_cross_encoder_scores_a_pair_the_same_in_any_company(cross_encoder: Path) -> None:
    pairs = [
        ("who won", "ann won"),
        ("who won", "bo won the race late ."),
        ("who", "the race"),
        ("won", "late"),
    ]
    together = CrossEncoderJudge(model=str(cross_encoder), batch=4, device="cpu").scores(pairs)
    alone = [CrossEncoderJudge(model=str(cross_encoder), batch=1, device="cpu").scores([p])[0] for p in pairs]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(s, 3) for s in together}) == 4


def reasons(judge: Judge, questions: list[Question]) -> list[str]:
    found = ask(judge, questions, Journal().ledger("judge", judge.identity))
    return [verdict.reason for verdict in found if isinstance(verdict, Verdict)]


def test_a_passage_answers_if_it_scores_within_the_margin_of_the_positive(cross_encoder: Path) -> None:
    query = Query(id="q", text="who won")
    texts = ["ann won", "bo won the race", "the race late ."]
    scores = dict(
        zip(
            texts,
            CrossEncoderJudge(model=str(cross_encoder)).scores([("who won", t) for t in texts]),
            strict=True,
        )
    )
    low, middle, high = sorted(texts, key=lambda t: scores[t])
    gap = scores[high] - scores[middle]
    for margin, kinds in (
        (0.0, ["valid", "valid", "answers"]),
        (gap * 1.01, ["valid", "answers", "answers"]),
    ):
        judge = CrossEncoderJudge(model=str(cross_encoder), margin=margin)
        assert reasons(judge, [Question(query, text, positive=high) for text in (low, middle, high)]) == kinds
    bare = reasons(CrossEncoderJudge(model=str(cross_encoder)), [Question(query, text) for text in texts])
    assert bare == ["answers" if scores[t] >= 0 else "valid" for t in texts]


def test_a_judge_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot be loaded"):
        CrossEncoderJudge(model=str(tmp_path / "none")).scores([("a", "b")])
