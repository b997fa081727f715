from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from causalneg.encoders import Encoder, SmallTransformer, StaticEncoder, build_encoder
from causalneg.training.cached import TokenChunk, cached_embeddings, token_chunks
from common.ragged import Ragged

CORPUS = ["the cat sat on the mat", "a dog bit a man in 1987", "the man bit the dog again", "so it goes"]


def static(dropout: float) -> Encoder:
    return StaticEncoder.build(CORPUS, dim=8, query_dropout=dropout, document_dropout=dropout)


def small(dropout: float) -> Encoder:
    return SmallTransformer.build(CORPUS, width=8, attention=8, heads=2, inner=6, layers=2, dropout=dropout)


def bert(dropout: float) -> Encoder:
    config = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"intermediate_size": 12, "max_position_embeddings": 32, "pad_token_id": 0}
    config |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    options = {"config": config, "vocabulary": 270, "max_tokens": 32}
    return build_encoder("transformer", options, texts=CORPUS)


KINDS: dict[str, Callable[[float], Encoder]] = {"static": static, "small": small, "bert": bert}


def chunk(rows: Sequence[Sequence[int]], query: bool) -> TokenChunk:
    ragged = Ragged.from_lists(rows, dtype=np.int32)
    return TokenChunk(torch.from_numpy(ragged.values), torch.from_numpy(ragged.offsets), query)


def vocabulary(encoder: Encoder) -> int:
    return max(p.shape[0] for p in encoder.parameters())


def texts(encoder: Encoder, count: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    size = vocabulary(encoder)
    return [[1, *rng.integers(1, size, rng.integers(1, 9)).tolist()] for _ in range(count)]


def cached_loss(
    encoder: Encoder, batches: Sequence[Sequence[TokenChunk]], loss: Callable[[list[Tensor]], Tensor]
) -> Tensor:
    return loss([cached_embeddings(encoder, chunks) for chunks in batches])


def loss_of(vectors: list[Tensor]) -> Tensor:
    """Something that ties every vector to every other, and is not symmetric."""
    query, passages = vectors
    return (query @ passages.T / 0.1).logsumexp(1).pow(2).mean() + query.pow(3).sum()


def plain_loss(encoder: Encoder, batches: Sequence[Sequence[TokenChunk]]) -> Tensor:
    return loss_of(
        [torch.cat([encoder(c.ids, c.offsets, query=c.query) for c in chunks]) for chunks in batches]
    )


def gradients(encoder: Encoder, loss: Tensor) -> dict[str, Tensor]:
    encoder.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {
        name: p.grad.to_dense() if p.grad.is_sparse else p.grad
        for name, p in encoder.named_parameters()
        if p.grad is not None
    }


def split(rows: list[list[int]], size: int, query: bool) -> list[TokenChunk]:
    return [chunk(rows[i : i + size], query) for i in range(0, len(rows), size)]


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor], **bounds: Any) -> None:
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, **bounds)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_equals_the_plain_path(kind: str, dropout: float) -> None:
    encoder = KINDS[kind](dropout).double().train()
    queries, passages = texts(encoder, 5, 1), texts(encoder, 11, 2)
    batches = [split(queries, 2, True), split(passages, 3, False)]

    torch.manual_seed(7)
    plain = plain_loss(encoder, batches)
    wanted = gradients(encoder, plain)
    torch.manual_seed(7)
    cached = cached_loss(encoder, batches, loss_of)
    after_first_pass = torch.get_rng_state()
    found = gradients(encoder, cached)

    assert abs((cached - plain).item()) < 1e-10
    assert all(grad.any() for grad in wanted.values())
    assert_equal(found, wanted, rtol=1e-10, atol=1e-10)
    assert torch.equal(torch.get_rng_state(), after_first_pass)  # the second pass leaves no trace


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_chunks_of_any_size_give_the_same(kind: str, data: st.DataObject) -> None:
    encoder = KINDS[kind](0.0).double()
    size = vocabulary(encoder)
    row = st.lists(st.integers(1, size - 1), min_size=1, max_size=7)
    rows = data.draw(st.lists(row, min_size=1, max_size=9))
    query = [chunk(rows[:1], True)]
    wanted_loss = plain_loss(encoder, [query, [chunk(rows, False)]])
    wanted = gradients(encoder, wanted_loss)
    lengths = Ragged.from_lists(rows, dtype=np.int32)
    chunks, place = token_chunks(lengths, query=False, chunk_tokens=data.draw(st.integers(1, 40)))
    assert sorted(place.tolist()) == list(range(len(rows)))
    loss = cached_loss(encoder, [query, chunks], lambda v: loss_of([v[0], v[1][place]]))
    assert abs((loss - wanted_loss).item()) < 1e-10
    assert_equal(gradients(encoder, loss), wanted, rtol=1e-10, atol=1e-10)


def test_a_chunk_that_needs_no_gradient_leaves_weights_alone() -> None:
    encoder = small(0.0)
    vectors = cached_embeddings(encoder, split(texts(encoder, 4, 0), 2, False))
    weight = encoder.get_parameter("word_weight")
    (grad,) = torch.autograd.grad((vectors * 0).sum(), [weight])
    assert not grad.any()
    assert weight.grad is None


def test_gradients_survive_an_open_autocast() -> None:
    """Weights that autocast casts in the first pass have no graph: the second must not find them."""
    encoder = small(0.0).train()
    batches = [split(texts(encoder, 4, 1), 2, True), split(texts(encoder, 6, 2), 2, False)]
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        wanted = gradients(encoder, plain_loss(encoder, batches))
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(encoder, cached_loss(encoder, batches, loss_of))
    assert_equal(found, wanted, rtol=1e-5, atol=1e-6)


def test_each_hook_sees_one_whole_gradient() -> None:
    encoder = small(0.0).double()
    batches = [split(texts(encoder, 4, 1), 1, True), split(texts(encoder, 6, 2), 2, False)]
    wanted = gradients(encoder, plain_loss(encoder, batches))
    calls: list[str] = []
    for name, parameter in encoder.named_parameters():
        hook = partial(lambda name, _: calls.append(name), name)
        parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    assert_equal(gradients(encoder, cached_loss(encoder, batches, loss_of)), wanted, rtol=1e-10, atol=1e-10)
    assert sorted(calls) == sorted(wanted)


def test_a_change_between_the_passes_is_refused() -> None:
    encoder = small(0.0)
    chunks = split(texts(encoder, 4, 0), 2, False)
    vectors = cached_embeddings(encoder, chunks)
    with torch.no_grad():
        encoder.get_parameter("word_weight").add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        vectors.sum().backward()  # type: ignore[no-untyped-call]
    vectors = cached_embeddings(encoder.train(), chunks)
    encoder.eval()
    with pytest.raises(RuntimeError, match="training mode changed"):
        vectors.sum().backward()  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="at least one chunk"):
        cached_embeddings(encoder, [])
