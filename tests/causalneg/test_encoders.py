from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from causalneg.encoders import (
    Encoder,
    SmallTransformer,
    StaticEncoder,
    build_encoder,
    encode,
    even_chunks,
    load_encoder,
)
from causalneg.encoders.packing import Packing, run_packed
from causalneg.encoders.static import MOST_COUNTED, StaticOptimizer
from causalneg.encoders.vocabulary import canonical, inverse_document_frequency, word_tokenizer
from common.errors import BackendError, ConfigError, DataError
from common.ragged import Ragged

CORPUS = [
    "The cat sat on the mat, and the dog sat on the cat.",
    "A dog bit a man in 1987; the man bit the dog in 1991.",
    "Zürich has 434,335 people!",
    "one",
    "Who bit whom? The man, the dog: the the the the the the the the the the the the the the.",
]
SMALL = {"width": 16, "attention": 8, "heads": 2, "inner": 12, "layers": 2}
BERT = {"model_type": "bert"}
QWEN3 = {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8}
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}


def static(**options: Any) -> StaticEncoder:
    return StaticEncoder.build(CORPUS, dim=16, start="idf", **options)


def small(**options: Any) -> SmallTransformer:
    return SmallTransformer.build(CORPUS, **{**SMALL, **options})


def transformer(config: dict[str, Any], **options: Any) -> Encoder:
    return build_encoder(
        "transformer",
        {"config": {**TINY, **config}, "vocabulary": 300, "max_tokens": 40, **options},
        texts=CORPUS,
    )


KINDS: dict[str, Callable[[], Encoder]] = {
    "static": static,
    "small": small,
    "bert": lambda: transformer(BERT, query_prompt="query: "),
    "qwen3": lambda: transformer(QWEN3, instruction="find the text", lora={"r": 2}),
}


@pytest.fixture(scope="module", params=KINDS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """Each kind with weights that training might have left."""
    made = KINDS[request.param]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made


def vectors(encoder: Encoder, texts: Sequence[str], *, query: bool = False) -> np.ndarray:
    return encode(encoder, encoder.tokenize(texts, query=query), query=query)


# what every encoder promises


def test_vectors_have_length_one_and_do_not_depend_on_company(encoder: Encoder) -> None:
    tokens = encoder.tokenize(CORPUS, query=False)
    assert tokens.values.dtype == np.int32
    together = encode(encoder, tokens, query=False)
    assert together.shape == (len(CORPUS), encoder.dim)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    alone = np.concatenate([vectors(encoder, [text]) for text in CORPUS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    for budget in (1, 17, 40):
        np.testing.assert_allclose(
            encode(encoder, tokens, query=False, batch_tokens=budget), together, atol=1e-5
        )
    assert encode(encoder, tokens.gather(np.zeros(0, dtype=np.int64)), query=False).shape == (0, encoder.dim)


def test_saved_and_read_again_gives_the_same_bits(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "encoder")
    again = load_encoder(tmp_path / "encoder")
    assert type(again) is type(encoder)
    assert again.fingerprint == encoder.fingerprint
    assert again.settings() == encoder.settings()
    for query in (True, False):
        assert np.array_equal(vectors(encoder, CORPUS, query=query), vectors(again, CORPUS, query=query))
    trainable = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == trainable
    files = {path.suffix for path in (tmp_path / "encoder").rglob("*") if path.is_file()}
    assert files <= {".json", ".safetensors"}

    with torch.no_grad():
        next(p for p in again.parameters() if p.requires_grad).view(-1)[0] += 1
    assert again.fingerprint != encoder.fingerprint


def test_sentence_transformers_gives_the_same_vectors(encoder: Encoder, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = [*CORPUS, "cat xylophone 1987 the the cat", "Über dog\n\tman: 12345"]
    encoder.export_sentence_transformers(tmp_path / "exported")
    model = SentenceTransformer(str(tmp_path / "exported"))
    found, wanted = model.encode_query(texts), vectors(encoder, texts, query=True)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    np.testing.assert_allclose(model.encode_document(texts), vectors(encoder, texts), atol=2e-6)
    files = {path.suffix for path in (tmp_path / "exported").rglob("*") if path.is_file()}
    assert files <= {".json", ".safetensors", ".jinja"}


@pytest.mark.parametrize("options", [{}, {"lora": {"r": 2}}, {"pooling": "cls", "query_prompt": "q: "}])
@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_folders_of_others_are_read(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    """What sentence-transformers takes from us, or saves itself, is taken back; without its notes too."""
    from sentence_transformers import SentenceTransformer

    encoder = transformer(FAMILIES[family][0], **options)
    encoder.export_sentence_transformers(tmp_path / "exported")
    again = load_encoder(tmp_path / "exported")
    SentenceTransformer(str(tmp_path / "exported"), device="cpu").save(str(tmp_path / "theirs"))
    for other in (again, load_encoder(tmp_path / "theirs")):
        assert other.max_tokens == encoder.max_tokens
        for query in (True, False):
            np.testing.assert_allclose(
                vectors(other, CORPUS, query=query), vectors(encoder, CORPUS, query=query), atol=2e-6
            )
    for name in ("modules.json", "config_sentence_transformers.json"):
        (tmp_path / "exported" / name).unlink()
    plain: Any = load_encoder(tmp_path / "exported")
    assert (plain.pooling, plain.query_prompt) == ("last" if family == "qwen3" else "mean", "")
    if not options:
        np.testing.assert_allclose(vectors(plain, CORPUS), vectors(encoder, CORPUS), atol=2e-6)


def test_what_cannot_be_read_of_others_is_named(tmp_path: Path) -> None:
    small().export_sentence_transformers(tmp_path / "small")
    with pytest.raises(DataError, match=r"modules.json: has a module '\w+', which cannot be read here"):
        load_encoder(tmp_path / "small")
    folder = tmp_path / "bert"
    transformer(BERT).export_sentence_transformers(folder)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"word_embedding_dimension": 16, "pooling_mode": "max"}))
    with pytest.raises(DataError, match="pools by max; here there is mean, last token and first token"):
        load_encoder(folder)
    (folder / "modules.json").write_text("[{}]")
    with pytest.raises(DataError, match="does not list modules"):
        load_encoder(folder)


def test_every_trainable_weight_is_in_one_group(encoder: Encoder) -> None:
    grouped = [id(p) for group in encoder.parameter_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in encoder.parameters() if p.requires_grad)
    rows = encoder.tokenize(CORPUS, query=False)
    encoder.zero_grad()
    encoder.train()(torch.from_numpy(rows.values), torch.from_numpy(rows.offsets), query=False)[
        0
    ].sum().backward()
    encoder.eval()
    optimizer = encoder.optimizer(lr=1e-2)
    before = encoder.fingerprint
    optimizer.step()
    assert encoder.fingerprint != before
    encoder.zero_grad()


def test_weights_that_are_not_finite_are_named() -> None:
    broken = small()
    with torch.no_grad():
        broken.get_parameter("layers.1.mlp_out.weight")[0, 0] = math.nan
    with pytest.raises(DataError, match=r"not finite for text 0 \(5 of 5\)"):
        vectors(broken, CORPUS)
    assert broken.training  # the mode is given back


def test_cut_texts_are_counted() -> None:
    encoder = small(max_tokens=8)
    rows = encoder.tokenize(CORPUS, query=False)
    assert rows.lengths.max() == 8
    assert encoder.cut == 3
    encoder.tokenize(CORPUS[:1], query=True)
    assert encoder.cut == 4
    encoder.tokenize(CORPUS, query=False)  # the same texts again
    assert encoder.cut == 4
    whole = small().tokenize(CORPUS, query=False)
    assert np.array_equal(rows.values, whole.clip(8, "first").values)


# building and loading


def test_options_of_build_are_checked_together() -> None:
    with pytest.raises(ConfigError, match=r"there is no encoder 'smal'; did you mean 'small'\?"):
        build_encoder("smal", {}, texts=CORPUS)
    with pytest.raises(ConfigError) as caught:
        build_encoder("small", {"widht": 8, "head": 2}, texts=CORPUS)
    assert caught.value.messages == (
        "encoder.widht: encoder 'small' has no such setting; did you mean 'encoder.width'?",
        "encoder.head: encoder 'small' has no such setting; did you mean 'encoder.heads'?",
    )
    with pytest.raises(
        ConfigError, match="encoder 'small': width must be a multiple of the heads, got 10 and 4"
    ):
        build_encoder("small", {"width": 10, "heads": 4}, texts=CORPUS)
    with pytest.raises(DataError, match="no word occurs 1 times in 1 texts"):
        build_encoder("static", {}, texts=["..."])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"knots": 1}, "knots must be at least 2, got 1"),
        ({"query_dropout": 1.0}, "query_dropout must be below 1, got 1.0"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"min_count": 0}, "min_count must be at least 1, got 0"),
    ],
)
def test_static_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StaticEncoder.build(CORPUS, **options)


def test_a_folder_without_an_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config.json: missing; give the folder"):
        load_encoder(tmp_path)
    folder = tmp_path / "encoder"
    small().save(folder)
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"causalneg_encoder": "big"}, "unknown kind of encoder 'big'"),
        ({"causalneg_encoder": None}, "does not name a kind of encoder"),
        ({"height": 3}, "does not describe an encoder"),
        ({"width": 32}, "does not hold this encoder's weights"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(DataError, match=message):
            load_encoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        load_encoder(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(DataError, match="does not hold this encoder's weights"):
        load_encoder(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="holds no tokenizer"):
        load_encoder(folder)


# vocabulary


def test_vocabulary_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "import sys, zlib; from causalneg.encoders.vocabulary import *; texts = sys.argv[1:];"
        "print(*[zlib.crc32(canonical(word_tokenizer(texts, spell=s, start=s)[0]).encode()) for s in (0, 1)])"
    )
    path = str(Path(__file__).parents[2] / "packages")
    there = subprocess.run(
        [sys.executable, "-c", code, *CORPUS],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [canonical(word_tokenizer(CORPUS, spell=s, start=s)[0]).encode() for s in (False, True)]
    assert there.stdout.split() == [str(zlib.crc32(text)) for text in here]


def test_words_stand_in_the_order_of_document_frequency() -> None:
    tokenizer, frequency = word_tokenizer(["b a b", "c b", "A ²c", "e\u0301"], min_count=1)
    assert [tokenizer.id_to_token(i) for i in range(5)] == ["[UNK]", "a", "b", "2c", "c"]
    assert frequency.tolist() == [0, 2, 2, 1, 1, 1]
    assert tokenizer.id_to_token(5) == "é"  # composed, lower-cased
    tokenizer, frequency = word_tokenizer(["b a b", "c b", "A"], min_count=2, max_words=1)
    assert tokenizer.get_vocab() == {"[UNK]": 0, "a": 1}
    assert frequency.tolist() == [2, 2]


def test_unknown_words_are_spelled_or_unknown() -> None:
    tokenizer, _ = word_tokenizer(["cat dog art"], spell=True, start=True)
    assert tokenizer.encode("cat catdog toad bat").tokens == [
        *("[CLS]", "cat", "cat", "##d", "##o", "##g"),
        *("t", "##o", "##a", "##d", "[UNK]"),
    ]
    tokenizer, _ = word_tokenizer(["cat dog art"])
    assert tokenizer.encode("cat catdog").tokens == ["cat", "[UNK]"]


def test_inverse_document_frequency_by_hand() -> None:
    found = inverse_document_frequency(np.array([0, 1, 10]), 10)
    np.testing.assert_allclose(found, [math.log(22), math.log(1 + 9.5 / 1.5), math.log(1 + 0.5 / 10.5)])


# the bag of words


def static_reference(encoder: StaticEncoder, text: str) -> np.ndarray:
    """The equation, word by word."""
    total = np.zeros(encoder.dim)
    knots = encoder.curve.detach().double().numpy()
    places = np.linspace(0, float(encoder.idf.max()), len(knots))
    for word, times in Counter(encoder.tokenizer.encode(text).tokens).items():
        if word == "[UNK]":
            continue
        row = encoder.tokenizer.token_to_id(word)
        curve = np.interp(float(encoder.idf[row]), places, knots)
        weight = np.log1p(np.exp(encoder.word_weight[row].item() + curve))
        total += math.sqrt(min(times, int(encoder.cap[row]))) * weight * encoder.vectors[row].detach().numpy()
    out: np.ndarray = total / np.linalg.norm(total)
    return out


def test_static_vectors_follow_the_equation() -> None:
    encoder = static()
    with torch.no_grad():
        encoder.word_weight.normal_()
        encoder.curve.normal_()
    texts = [*CORPUS, "cat cat cat dog unheard the the"]
    wanted = [static_reference(encoder, text) for text in texts]
    np.testing.assert_allclose(vectors(encoder, texts), wanted, atol=1e-6)


def test_static_start_and_caps() -> None:
    encoder = static()
    np.testing.assert_allclose(
        encoder.weights().detach().numpy()[1:], encoder.idf.numpy()[1:].clip(1e-2), rtol=0.05, atol=0.02
    )
    equal = StaticEncoder.build(CORPUS, dim=4)
    np.testing.assert_allclose(equal.weights().detach().numpy(), 1, rtol=1e-6)
    times = {word: int(encoder.cap[encoder.tokenizer.token_to_id(word)]) for word in ("the", "sat", "one")}
    assert times == {"the": 16, "sat": 2, "one": 1}
    many = StaticEncoder.build(["a " * 50], dim=4)
    assert many.cap.tolist() == [1, MOST_COUNTED]


def test_words_out_of_the_corpus_say_nothing() -> None:
    encoder = static()
    assert not vectors(encoder, ["xyzzy", ""]).any()
    assert np.array_equal(vectors(encoder, ["cat xyzzy"]), vectors(encoder, ["cat"]))


@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_static_gradients_are_those_of_a_dense_product(rows: list[list[int]], seed: int) -> None:
    torch.manual_seed(seed)
    encoder = static().double().eval()
    with torch.no_grad():
        encoder.word_weight.normal_()
    packed = Ragged.from_lists(rows)
    direction = torch.randn(len(rows), encoder.dim, dtype=torch.float64)
    out = encoder(torch.from_numpy(packed.values), torch.from_numpy(packed.offsets), query=False)
    wanted_parameters = [encoder.vectors, encoder.word_weight, encoder.curve]
    found = torch.autograd.grad((out * direction).sum(), wanted_parameters)

    count = torch.zeros(len(rows), len(encoder.cap), dtype=torch.float64)
    for i, row in enumerate(rows):
        for token in row:
            count[i, token] += 1
    dense = count.minimum(encoder.cap).sqrt() * encoder.weights() @ encoder.vectors
    reference = F.normalize(dense, dim=-1)
    wanted = torch.autograd.grad((reference * direction).sum(), wanted_parameters)
    torch.testing.assert_close(out, reference, rtol=0, atol=1e-12)
    assert found[0].is_sparse
    assert found[0].coalesce().indices().shape[1] == len({token for row in rows for token in row})
    torch.testing.assert_close(found[0].to_dense(), wanted[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[1:], wanted[1:], rtol=1e-9, atol=1e-12)


def test_static_dropout_drops_whole_words_but_never_all() -> None:
    encoder = StaticEncoder.build(["a b c d e f g h i j"], dim=64, query_dropout=0.9, document_dropout=0.5)
    encoder.vectors.data = torch.eye(11, 64)  # a vector's entries are its words
    rows = Ragged.from_lists([[*range(1, 11), 1]] * 2000, dtype=np.int32)
    ids, offsets = torch.from_numpy(rows.values), torch.from_numpy(rows.offsets)
    torch.manual_seed(0)
    for query, share in ((True, 0.1), (False, 0.5)):
        kept = (encoder.train()(ids, offsets, query=query) > 0).sum(1)
        assert kept.min() >= 1
        exact = 10 * share + 10 * (1 - share) ** 10  # all ten come back where none is left
        assert abs(kept.double().mean().item() - exact) < 0.15
    assert ((encoder.eval()(ids, offsets, query=True) > 0).sum(1) == 10).all()


def test_static_optimizer_follows_its_rules() -> None:
    mine = [torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0])) for _ in range(3)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    optimizer = StaticOptimizer(
        [
            {"params": [mine[0]], "rule": "adagrad", "lr": 0.05},
            {"params": [mine[1]], "rule": "adam", "lr": 0.02},
            {"params": [mine[2]], "rule": "sgd", "lr": 0.1},
        ]
    )
    references = [
        torch.optim.Adagrad([theirs[0]], lr=0.05),
        torch.optim.Adam([theirs[1]], lr=0.02, eps=1e-10),
        torch.optim.SGD([theirs[2]], lr=0.1),
    ]
    for step in range(4):
        grad = torch.tensor([1.0, 0.0, -step])
        for p in (*mine, *theirs):
            p.grad = grad.clone()
        mine[2].grad = grad.to_sparse()
        optimizer.step()
        for reference in references:
            reference.step()
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q)
    with pytest.raises(ValueError, match="rule must be adagrad, adam or sgd, got 'adamw'"):
        StaticOptimizer([{"params": [mine[0]], "rule": "adamw"}])
    with pytest.raises(ValueError, match="no weight decay"):
        static().optimizer(weight_decay=0.1)


# packed tokens


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    share=st.sampled_from([1, 2]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 2**16),
)
def test_packed_attention_against_a_loop(
    lengths: list[int], share: int, causal: bool, window: int | None, seed: int
) -> None:
    torch.manual_seed(seed)
    lengths.sort()
    groups = [(number, length) for length, number in sorted(Counter(lengths).items())]
    place = torch.cat([torch.arange(length) for length in lengths])
    packing = Packing(place, groups)
    q = torch.randn(sum(lengths), 2 * share, 4, dtype=torch.float64)
    k, v = torch.randn(2, sum(lengths), 2, 4, dtype=torch.float64)
    found = packing.attention(q, k, v, scale=0.3, causal=causal, window=window)
    start = 0
    for length in lengths:
        for head in range(2 * share):
            for i in range(length):
                seen = [
                    j
                    for j in range(length)
                    if (j <= i or not causal) and (window is None or abs(i - j) < window)
                ]
                keys = k[start : start + length, head // share][seen]
                weight = torch.softmax(0.3 * keys @ q[start + i, head], 0)
                wanted = weight @ v[start : start + length, head // share][seen]
                torch.testing.assert_close(found[start + i, head], wanted, rtol=1e-9, atol=1e-9)
        start += length


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=7), min_size=1, max_size=9),
    segment=st.integers(1, 30),
)
def test_packed_runs_keep_the_order_of_texts(rows: list[list[int]], segment: int) -> None:
    packed = Ragged.from_lists(rows)

    def run(ids: Tensor, packing: Packing) -> Tensor:
        x = ids[:, None].double()
        assert sum(packing.sizes) == len(ids)
        return torch.cat([packing.sum(x), packing.mean(x), packing.first(x), packing.last(x)], 1)

    found = run_packed(
        torch.from_numpy(packed.values), torch.from_numpy(packed.offsets), run, segment=segment
    )
    wanted = [[sum(row), sum(row) / len(row), row[0], row[-1]] for row in rows]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_an_empty_text_is_refused_by_packed_runs() -> None:
    with pytest.raises(ValueError, match="text 1 has no token"):
        small()(torch.tensor([1, 1]), torch.tensor([0, 1, 1, 2]), query=False)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), max_size=60), budget=st.integers(1, 100))
def test_chunks_are_even(lengths: list[int], budget: int) -> None:
    chunks = even_chunks(np.array(lengths, dtype=np.int64), budget)
    order = [int(i) for chunk in chunks for i in chunk]
    assert sorted(order) == list(range(len(lengths)))
    cost = [max(length, 1) for length in lengths]
    assert [cost[i] for i in order] == sorted(cost, reverse=True)
    sums = [sum(cost[int(i)] for i in chunk) for chunk in chunks]
    if sums:
        mean = sum(sums) / -(-sum(sums) // budget)
        assert mean <= budget
        assert all(total < mean + max(cost) for total in sums)


# the small transformer


def small_reference(encoder: SmallTransformer, ids: list[int]) -> np.ndarray:
    """One text alone, rotation and attention written out."""
    weights = {name: w.detach().double().numpy() for name, w in encoder.named_parameters()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred: np.ndarray = x - x.mean(-1, keepdims=True)
        centred *= weights[f"{name}.weight"] / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return centred

    heads = encoder.heads
    half = encoder.attention // heads // 2
    angle = np.arange(len(ids))[:, None] * 10000.0 ** (-np.arange(half) / half)

    def turn(x: np.ndarray) -> np.ndarray:
        a, b = x[:, 0::2], x[:, 1::2]
        turned = np.empty_like(x)
        turned[:, 0::2] = a * np.cos(angle) - b * np.sin(angle)
        turned[:, 1::2] = a * np.sin(angle) + b * np.cos(angle)
        return turned

    x = weights["token.weight"][ids]
    for layer in range(len(encoder.layers)):
        at = f"layers.{layer}."
        q, k, v = np.split(norm(x, f"{at}attention_norm") @ weights[f"{at}qkv.weight"].T, 3, axis=1)
        out = np.zeros_like(v)
        for head in range(heads):
            part = slice(head * 2 * half, (head + 1) * 2 * half)
            score = turn(q[:, part]) @ turn(k[:, part]).T / math.sqrt(2 * half)
            weight = np.exp(score - score.max(1, keepdims=True))
            out[:, part] = weight / weight.sum(1, keepdims=True) @ v[:, part]
        x = x + out @ weights[f"{at}attention_out.weight"].T
        value, gate = np.split(norm(x, f"{at}mlp_norm") @ weights[f"{at}mlp_in.weight"].T, 2, axis=1)
        x = x + (value / (1 + np.exp(-value)) * gate) @ weights[f"{at}mlp_out.weight"].T
    pooled = (np.log1p(np.exp(weights["word_weight"][ids]))[:, None] * norm(x, "last_norm")).sum(0)
    vector: np.ndarray = pooled / np.linalg.norm(pooled)
    return vector


def test_small_transformer_follows_its_equations() -> None:
    encoder = small()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    tokens = encoder.tokenize(CORPUS, query=False)
    wanted = [small_reference(encoder, tokens[i].tolist()) for i in range(len(CORPUS))]
    np.testing.assert_allclose(encode(encoder, tokens, query=False), wanted, atol=1e-5)


def test_small_transformer_projects_each_word_once() -> None:
    """More words than tokens, or more tokens than words: it computes the same."""
    encoder = small().double()
    rows = encoder.tokenize(CORPUS, query=False)
    few = [rows.gather(np.array([i])) for i in range(len(CORPUS))]
    assert len(few[3].values) < len(encoder.word_weight) < len(rows.values) * 2
    many = rows.gather(np.repeat(np.arange(len(CORPUS)), 2))
    assert len(many.values) > len(encoder.word_weight)
    direction = torch.randn(16, dtype=torch.float64)

    def run(parts: list[Ragged]) -> list[Tensor]:
        out = torch.cat(
            [encoder(torch.from_numpy(p.values), torch.from_numpy(p.offsets), query=False) for p in parts]
        )
        return [out, *torch.autograd.grad((out @ direction).sum(), list(encoder.parameters()))]

    twice, once = run([many]), run(few)
    torch.testing.assert_close(twice[0][::2], once[0], rtol=0, atol=1e-12)
    torch.testing.assert_close([g / 2 for g in twice[1:]], once[1:], rtol=1e-9, atol=1e-12)


def test_small_transformer_sees_order() -> None:
    encoder = small()
    with torch.no_grad():
        for layer in range(2):
            encoder.get_parameter(f"layers.{layer}.attention_out.weight").mul_(10)
            encoder.get_parameter(f"layers.{layer}.mlp_out.weight").mul_(10)
    a, b = vectors(encoder, ["the dog bit the man", "the man bit the dog"])
    assert 0.5 < a @ b < 0.9999
    a, b = vectors(static(), ["the dog bit the man", "the man bit the dog"])
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_small_transformer_starts_as_a_weighted_bag() -> None:
    """Untrained, it finds the text that shares rare words, whatever their order."""
    encoder = small(width=64)
    documents = vectors(encoder, CORPUS)
    queries = vectors(encoder, ["people zürich", "1987 bit man", "mat cat", "whom who"], query=True)
    assert (queries @ documents.T).argmax(1).tolist() == [2, 1, 0, 4]


def test_small_arguments_are_checked() -> None:
    tokenizer, frequency = word_tokenizer(CORPUS, start=True)
    with pytest.raises(ValueError, match="weight must be as many positive numbers"):
        SmallTransformer(tokenizer, np.zeros(len(frequency)))
    without, frequency = word_tokenizer(CORPUS)
    with pytest.raises(ValueError, match=r"has no token \[CLS\]"):
        SmallTransformer(without, np.ones(len(frequency)))
    for options, message in (
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"attention": 6}, "attention must be a multiple of twice the heads, got 6 and 2"),
        ({"dropout": -0.1}, "dropout must be at least 0, got -0.1"),
        ({"max_tokens": 1}, "max_tokens must be at least 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**options)
    with pytest.raises(ValueError, match="a text has 9 tokens, but the encoder reads 8"):
        small(max_tokens=8)(torch.ones(9, dtype=torch.long), torch.tensor([0, 9]), query=False)


# transformers of Hugging Face


def one_by_one(encoder: Any, tokens: Ragged, pooling: str) -> np.ndarray:
    """Every text alone through the untouched model: no padding, no packing."""
    encoder.eval().core.set_attn_implementation("eager")
    out = []
    with torch.no_grad():
        for i in range(len(tokens)):
            ids = torch.from_numpy(np.array(tokens[i]))[None].long()
            states = encoder.core(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            pooled = {"mean": states.mean(0), "last": states[-1], "cls": states[0]}[pooling]
            out.append(F.normalize(pooled, dim=0).numpy())
    return np.stack(out)


FAMILIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "bert": (BERT, ["none", "left", "right"]),
    "qwen3": (QWEN3, ["none", "left", "right"]),
    "qwen3-window": (
        {**QWEN3, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        ["none", "left", "right"],
    ),
}
MORE_FAMILIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "roberta": ({"model_type": "roberta"}, ["none", "left", "right"]),
    "xlm-roberta": ({"model_type": "xlm-roberta"}, ["none", "left", "right"]),
    "electra": ({"model_type": "electra", "embedding_size": 16}, ["none", "left", "right"]),
    "modernbert": (
        {
            "model_type": "modernbert",
            "global_attn_every_n_layers": 2,
            "local_attention": 8,
            "cls_token_id": 2,
            "sep_token_id": 3,
        },
        ["none", "left", "right"],
    ),
    "qwen2": ({"model_type": "qwen2", "num_key_value_heads": 2}, ["none", "left", "right"]),
    "llama": ({"model_type": "llama", "num_key_value_heads": 2}, ["none", "left", "right"]),
    "mistral": (
        {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 4},
        ["none", "left", "right"],
    ),
    "mpnet": ({"model_type": "mpnet"}, ["left", "right"]),
    "distilbert": (
        {"model_type": "distilbert", "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24},
        ["left", "right"],
    ),
    "albert": ({"model_type": "albert", "embedding_size": 16}, ["left", "right"]),
}


def assert_padding_is_invisible(config: dict[str, Any], sides: list[str]) -> None:
    for pooling in ("mean", "last", "cls"):
        for padding in sides:
            encoder = transformer(config, pooling=pooling, padding=padding)
            with torch.no_grad():
                for parameter in encoder.parameters():
                    parameter.add_(
                        0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
                    )
            tokens = encoder.tokenize(CORPUS, query=False)
            found = encode(encoder, tokens, query=False)
            np.testing.assert_allclose(found, one_by_one(encoder, tokens, pooling), atol=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_left_right_and_no_padding_give_the_vectors_of_lone_texts(family: str) -> None:
    assert_padding_is_invisible(*FAMILIES[family])


@pytest.mark.slow
@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_padding_is_invisible_in_more_families(family: str) -> None:
    assert_padding_is_invisible(*MORE_FAMILIES[family])


def test_padded_runs_are_tight() -> None:
    from causalneg.encoders.transformer import _tight

    lengths = sorted([5] * 10 + [6] * 10 + [50] * 3)
    assert _tight(lengths, enough=1) == [(0, 10), (10, 20), (20, 23)]  # 11 x 6 > 1.1 x 56
    assert _tight(lengths, enough=1, waste=0.2) == [(0, 20), (20, 23)]  # 11 x 6 < 1.2 x 56
    assert _tight(lengths, enough=101) == [(0, 20), (20, 23)]
    assert _tight(lengths, enough=10**6) == [(0, 23)]
    assert _tight([7]) == [(0, 1)]


def test_prompts_stand_in_front_and_texts_end_as_wanted() -> None:
    encoder: Any = transformer(QWEN3, instruction="bite", document_prompt="dog ", max_tokens=9)
    assert encoder.query_prompt == "Instruct: bite\nQuery: "
    ask = encoder.tokenizer
    rows = encoder.tokenize(["cat", CORPUS[0], ""], query=False)
    assert [ask.convert_ids_to_tokens(rows[0].tolist())[i] for i in (0, -1)] == ["Ġdog", "[SEP]"]
    assert len(rows[1]) == 9  # cut, and still ended
    assert rows[1][-1] == ask.eos_token_id
    assert (rows.values == ask.eos_token_id).sum() == 3
    assert encoder.cut == 1
    without = transformer(QWEN3, append_eos=False).tokenize(["cat", ""], query=False)
    assert ask.eos_token_id not in without[0].tolist()
    assert without.lengths.tolist() == [without.lengths[0], 1]  # a text without tokens gets one


def test_a_family_tokenizer_keeps_its_appended_end(tmp_path: Path) -> None:
    """A class of its own would split texts anew when loaded and forget what was appended."""
    from transformers import Qwen2Tokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyzĠ:,.?;!AIQTWZ0123456789"]
    made: Any = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(["<|endoftext|>", *letters])}, merges=[]
    )
    made.save_pretrained(tmp_path / "tokenizer")
    encoder = transformer({**QWEN3, "vocab_size": 60}, tokenizer=str(tmp_path / "tokenizer"), max_tokens=60)
    encoder.save(tmp_path / "encoder")
    for one in (encoder, load_encoder(tmp_path / "encoder")):
        row = one.tokenize(["cat"], query=False)[0].tolist()
        assert row == [3, 1, 20, 0]


def test_adapters_alone_learn_and_are_merged_on_export(tmp_path: Path) -> None:
    encoder: Any = transformer(BERT, lora={"r": 2, "lora_alpha": 4})
    trainable = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert not any("pooler" in name for name in trainable)
    encoder.export_sentence_transformers(tmp_path / "exported")
    names = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert names["model_type"] == "bert"
    again = build_encoder("transformer", {"model": str(tmp_path / "exported"), "max_tokens": 40})
    np.testing.assert_allclose(vectors(again, CORPUS), vectors(encoder, CORPUS), atol=1e-6)
    with pytest.raises(ConfigError, match=r"lora: .*unexpected keyword argument 'rank'"):
        transformer(BERT, lora={"rank": 2})


def test_code_in_a_folder_runs_only_with_the_users_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that says of itself that its code may run is refused, and that code is not touched."""
    folder = tmp_path / "encoder"
    transformer(BERT).save(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "trust_remote_code": True}))
    ran = tmp_path / "ran"
    (folder / "tokenizer" / "evil.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        f"open({str(ran)!r}, 'w').close()\n"
        "class Evil(PreTrainedTokenizerFast):\n    pass\n"
    )
    path = folder / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    mapped = {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}
    path.write_text(json.dumps(settings | mapped))
    with pytest.raises(DataError, match=r"needs code that lies in the folder; .*--trust-remote-code"):
        load_encoder(folder)
    (folder / "config.json").write_text(json.dumps({**config, "trust_remote_code": False}))
    with contextlib.suppress(DataError):
        load_encoder(folder)
    assert not ran.exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "config.json").write_text(json.dumps({**config, "trust_remote_code": True}))
    with contextlib.suppress(DataError):
        load_encoder(folder, trust_remote_code=True)
    assert ran.exists()  # it is the flag that kept it from running


def test_a_folder_gives_the_same_vectors_however_it_is_named(tmp_path: Path) -> None:
    """Pooling, prompts, longest text and ending are the folder's own, unless something else is asked for."""
    encoder = transformer(
        QWEN3, pooling="mean", query_prompt="ask: ", document_prompt="read: ", max_tokens=7
    ).eval()
    encoder.export_sentence_transformers(tmp_path)
    wanted = vectors(encoder, CORPUS)
    ways = [
        load_encoder(tmp_path),
        build_encoder("saved", {"folder": tmp_path}),
        build_encoder("transformer", {"model": str(tmp_path)}),
    ]
    for one in ways:
        np.testing.assert_allclose(vectors(one, CORPUS), wanted, atol=1e-6)
        assert (one.query_prompt, one.document_prompt, one.max_tokens) == ("ask: ", "read: ", 7)
    other: Any = build_encoder("transformer", {"model": str(tmp_path), "pooling": "last", "query_prompt": ""})
    assert (other.pooling, other.query_prompt, other.document_prompt) == ("last", "", "read: ")
    noted = tmp_path / "config_sentence_transformers.json"
    noted.write_text(json.dumps(json.loads(noted.read_text()) | {"similarity_fn_name": "dot"}))
    load_encoder(tmp_path)  # it normalises itself
    listed = json.loads((tmp_path / "modules.json").read_text())
    (tmp_path / "modules.json").write_text(json.dumps(listed[:2]))
    with pytest.raises(DataError, match="ranks by the dot product of vectors of any length"):
        load_encoder(tmp_path)


def test_checkpointed_layers_have_the_same_gradients() -> None:
    grads = []
    for checkpointing in (False, True):
        encoder = transformer(QWEN3, gradient_checkpointing=checkpointing).train()
        rows = encoder.tokenize(CORPUS, query=False)
        out = encoder(torch.from_numpy(rows.values), torch.from_numpy(rows.offsets), query=False)
        (out[0] * torch.arange(16)).sum().backward()
        grads.append([p.grad for p in encoder.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either the model's name or folder, or its config"),
        ({"config": {}}, "config must say model_type"),
        ({"config": {**TINY, **BERT}}, "needs texts to train one on"),
        ({"model": "x", "instruction": "a", "query_prompt": "b"}, "either an instruction or a query_prompt"),
    ],
)
def test_transformer_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder("transformer", options)


def test_transformer_arguments_must_fit_the_model() -> None:
    for options, message in (
        ({"max_tokens": 65}, "max_tokens is 65, but the model reads 64 at most"),
        ({"vocabulary": 261}, "vocabulary must be more than 261, got 261"),
    ):
        with pytest.raises(ConfigError, match=message):
            transformer(BERT, **options)
    with pytest.raises(ConfigError, match=r"padding 'none' works for bert, .*, not for albert"):
        transformer({"model_type": "albert", "embedding_size": 16}, padding="none")


def test_a_model_that_is_not_here_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"'nobody/nothing' is no folder here .*; put config.json, model"):
        build_encoder("transformer", {"model": "nobody/nothing", "offline": True})
    encoder = transformer(BERT)
    encoder.export_sentence_transformers(tmp_path / "exported")
    (tmp_path / "exported" / "model.safetensors").unlink()
    with pytest.raises(
        DataError, match=r"exported: cannot be loaded as a model .*it needs config.json, model"
    ):
        build_encoder("transformer", {"model": str(tmp_path / "exported")})
    untrained = build_encoder(
        "transformer", {"model": str(tmp_path / "exported"), "random_weights": True, "max_tokens": 40}
    )
    assert untrained.dim == encoder.dim


def test_a_transformer_of_a_config_is_the_same_each_time() -> None:
    first, second = transformer(BERT), transformer(BERT)
    assert first.fingerprint == second.fingerprint
    first.tokenize(["cat " * 99], query=False)
    assert first.cut == 1
    assert first.fingerprint == second.fingerprint  # cutting a text leaves no trace


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """The operating system refuses to let a file grow, as on a full disk."""
    encoder = small()

    @contextlib.contextmanager
    def small_files() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    for save in (encoder.save, encoder.export_sentence_transformers):
        with pytest.raises((DataError, OSError), match=r"[Ff]ile too large"), small_files():
            save(tmp_path / "model")
        assert list(tmp_path.iterdir()) == []
