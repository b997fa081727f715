"""The cheapest encoder that learns: a bag of words with learned weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Bool, Float, Int, Int64
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.adam import adam

from causalneg.encoders.bag_sum import bag_sum
from causalneg.encoders.base import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Encoder,
    inverse_softplus,
    load_weights,
    normalize,
    write_json,
)
from causalneg.encoders.vocabulary import (
    UNKNOWN,
    WORDS,
    WordEncoder,
    document_frequency,
    inverse_document_frequency,
    read_tokenizer,
    token_rows,
    word_tokenizer,
)
from common.config import Dropout, checked
from common.ragged import Ragged

Start = Literal["equal", "idf"]
"""Word weights before training: all 1, or the inverse document frequency."""

MOST_COUNTED = 32
"""A word counts as often as it occurs, up to this."""

_MARK = "\u2063"  # invisible separator: no word has it, and it joins no word


class StaticOptimizer(torch.optim.Optimizer):
    """Three rules in one optimizer, chosen by each group's ``rule``.

    - ``"adagrad"``: ``sum += g^2; p -= lr g / (sqrt(sum) + eps)``. A row without a gradient stands
      still, so that for a vector of word weights this is row-wise.
    - ``"adam"``: Adam with its usual betas.
    - ``"sgd"``: ``p -= lr g``, on the rows of a sparse gradient alone.

    Args:
        groups: Parameter groups with ``params``, ``lr`` and ``rule``.

    Raises:
        ValueError: A rule is unknown or a learning rate negative.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.1, "rule": "sgd", "eps": 1e-10})
        for group in self.param_groups:
            if group["rule"] not in ("adagrad", "adam", "sgd"):
                raise ValueError(f"rule must be adagrad, adam or sgd, got {group['rule']!r}")
            if group["lr"] < 0:
                raise ValueError(f"lr must not be negative, got {group['lr']}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient; gives what the closure gave, or None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    getattr(self, f"_{group['rule']}")(parameter, parameter.grad, group["lr"], group["eps"])
        return loss

    def _sgd(self, parameter: Tensor, grad: Tensor, lr: float, eps: float) -> None:
        parameter.add_(grad, alpha=-lr)

    def _adagrad(self, parameter: Tensor, grad: Tensor, lr: float, eps: float) -> None:
        state = self.state[parameter]
        if not state:
            state["sum"] = torch.zeros_like(parameter)
        state["sum"].addcmul_(grad, grad)
        parameter.addcdiv_(grad, state["sum"].sqrt().add_(eps), value=-lr)

    def _adam(self, parameter: Tensor, grad: Tensor, lr: float, eps: float) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        adam(
            [parameter],
            [grad],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=lr,
            weight_decay=0.0,
            eps=eps,
            maximize=False,
        )


@checked
class StaticEncoder(WordEncoder):
    """Bag of random word vectors with learned weights, shared by queries and documents.

    ``e(x) = sum_w sqrt(min(tf_w, cap_w)) softplus(b_w + c(idf_w)) v_w``, divided by its length.

    ``v_w`` starts as a random vector, ``b_w`` as 0; ``c`` is a piecewise-linear curve, learned at its
    knots, from all words alike: from equal weights it finds the inverse document frequency by itself.
    ``cap_w`` is the most often that the word occurs in one text of the corpus, at most
    :data:`MOST_COUNTED`: what is repeated more often than that says nothing more. Words that the corpus
    does not have say nothing; a text is read whole, however long.

    In training whole words are dropped from a text at random, never all of them.

    Args:
        tokenizer: Of :func:`causalneg.encoders.vocabulary.word_tokenizer`.
        idf: Inverse document frequency of each token.
        cap: Times that each token counts at most.
        dim: Length of a vector.
        start: Word weights before training.
        knots: Knots of the curve.
        query_dropout: Share of a query's words dropped in training.
        document_dropout: Share of a document's words dropped in training.
        seed: Of the random vectors.

    Raises:
        ValueError: An argument is out of range or the arrays do not fit the tokenizer.
    """

    kind: ClassVar[str] = "static"
    default_learning_rate: ClassVar[float] = 1.0  # a factor on the rates of its three parts
    idf: Tensor
    cap: Tensor
    knot: Tensor
    share: Tensor

    def __init__(
        self,
        tokenizer: Tokenizer,
        idf: Float[np.ndarray, " words"],
        cap: Int[np.ndarray, " words"],
        *,
        dim: int = 512,
        start: Start = "equal",
        knots: Annotated[int, Ge(2)] = 16,
        query_dropout: Dropout = 0.15,
        document_dropout: Dropout = 0.20,
        seed: int = 0,
    ) -> None:
        super().__init__(dim=dim, max_tokens=2**31 - 1)
        size = tokenizer.get_vocab_size()
        if len(idf) != size or len(cap) != size:
            raise ValueError(f"the tokenizer has {size} tokens, but idf has {len(idf)} and cap {len(cap)}")
        self.tokenizer = tokenizer
        self.start = start
        self.query_dropout = query_dropout
        self.document_dropout = document_dropout
        generator = torch.Generator().manual_seed(seed)
        self.vectors = nn.Parameter(torch.randn(size, dim, generator=generator) / math.sqrt(dim))
        self.word_weight = nn.Parameter(torch.zeros(size))
        self.register_buffer("idf", torch.as_tensor(idf, dtype=torch.float32))
        self.register_buffer("cap", torch.as_tensor(cap, dtype=torch.int32))
        value = torch.linspace(0, float(self.idf.max()), knots) if start == "idf" else torch.ones(knots)
        self.curve = nn.Parameter(inverse_softplus(value.clamp(min=1e-2)))
        self.register_buffer("knot", torch.zeros(size, dtype=torch.long), persistent=False)
        self.register_buffer("share", torch.zeros(size), persistent=False)
        self._place_knots()

    @classmethod
    def build(
        cls,
        texts: Sequence[str],
        *,
        dim: int = 512,
        start: Start = "equal",
        min_count: int = 1,
        max_words: int | None = None,
        knots: int = 16,
        query_dropout: float = 0.15,
        document_dropout: float = 0.20,
        seed: int = 0,
    ) -> StaticEncoder:
        """An untrained encoder with the vocabulary of a corpus.

        Args:
            texts: The corpus.
            dim: Length of a vector.
            start: Word weights before training.
            min_count: Times a word must occur.
            max_words: Words to keep, the most frequent; all by default.
            knots: Knots of the curve.
            query_dropout: Share of a query's words dropped in training.
            document_dropout: Share of a document's words dropped in training.
            seed: Of the random vectors.
        """
        tokenizer, _ = word_tokenizer(texts, min_count=min_count, max_words=max_words)
        size = tokenizer.get_vocab_size()
        rows = token_rows(tokenizer, texts)
        cap = np.ones(size, dtype=np.int64)
        text = np.repeat(np.arange(len(rows), dtype=np.int64), rows.lengths)
        pairs, count = np.unique(text * size + rows.values, return_counts=True)
        np.maximum.at(cap, pairs % size, count)
        return cls(
            tokenizer,
            inverse_document_frequency(document_frequency(rows, size), len(rows)),
            np.minimum(cap, MOST_COUNTED),
            dim=dim,
            start=start,
            knots=knots,
            query_dropout=query_dropout,
            document_dropout=document_dropout,
            seed=seed,
        )

    def _tokenize(self, texts: list[str]) -> tuple[Ragged, Int64[np.ndarray, " cut"]]:
        rows = token_rows(self.tokenizer, texts)
        known = rows.values != self.tokenizer.token_to_id(UNKNOWN)
        before = np.concatenate([[0], np.cumsum(known)])
        return Ragged(rows.values[known], before[rows.offsets]), np.zeros(0, dtype=np.int64)

    def weights(self) -> Float[Tensor, " words"]:
        """Weight of each word: ``softplus(b_w + c(idf_w))``."""
        low, high = self.curve[self.knot], self.curve[self.knot + 1]
        return F.softplus(self.word_weight + torch.lerp(low, high, self.share.to(low.dtype)))

    def forward(
        self, ids: Int[Tensor, " tokens"], offsets: Int[Tensor, " texts_plus_one"], *, query: bool
    ) -> Float[Tensor, "texts dim"]:
        """Vectors of packed texts; see :meth:`Encoder.forward`.

        A text without any known word gets zeros; queries and documents differ in their dropout.
        """
        size, texts = len(self.word_weight), len(offsets) - 1
        text = torch.repeat_interleave(offsets.diff(), output_size=len(ids))
        pairs, count = torch.unique(text * size + ids, return_counts=True)
        dropout = self.query_dropout if query else self.document_dropout
        if self.training and dropout > 0:
            keep = _keep(torch.div(pairs, size, rounding_mode="floor"), texts, dropout)
            pairs, count = pairs[keep], count[keep]
        text = torch.div(pairs, size, rounding_mode="floor")
        token = pairs - text * size
        times = torch.minimum(count, self.cap[token]).to(self.vectors.dtype).sqrt()
        begin = torch.searchsorted(text, torch.arange(texts + 1, device=ids.device))
        with torch.autocast(ids.device.type, enabled=False):
            weight = times * self.weights().index_select(0, token)
            return normalize(bag_sum(self.vectors, weight, token, begin))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Word weights, curve and vectors, each with its own ``rule`` and learning rate (``lr``)."""
        return [
            {"params": [self.word_weight], "rule": "adagrad", "lr": 0.05},
            {"params": [self.curve], "rule": "adam", "lr": 0.02},
            {"params": [self.vectors], "rule": "sgd", "lr": 0.1},
        ]

    def optimizer(self, *, lr: float = 1.0, weight_decay: float = 0.0) -> torch.optim.Optimizer:
        """Adagrad for words, Adam for the curve, lazy SGD for the vectors.

        Adam on the vectors memorises rare words and loses.

        Args:
            lr: Multiplies the three learning rates (0.05, 0.02, 0.1).
            weight_decay: Must be 0: word weights may not decay towards a weight of log 2.

        Raises:
            ValueError: ``weight_decay`` is not 0.
        """
        if weight_decay != 0:
            raise ValueError(f"a static encoder has no weight decay, got {weight_decay}")
        return StaticOptimizer([{**group, "lr": group["lr"] * lr} for group in self.parameter_groups()])

    def settings(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        return {
            "dim": self.dim,
            "start": self.start,
            "knots": len(self.curve),
            "query_dropout": self.query_dropout,
            "document_dropout": self.document_dropout,
        }

    @classmethod
    def _load_parts(cls, folder: Path, settings: dict[str, Any]) -> Encoder:
        tokenizer = read_tokenizer(folder / TOKENIZER_FILE)
        size = tokenizer.get_vocab_size()
        encoder = cls(tokenizer, np.zeros(size), np.ones(size, dtype=np.int64), **settings)
        load_weights(encoder, folder / WEIGHTS_FILE)
        encoder._place_knots()
        return encoder

    def _place_knots(self) -> None:
        """Find each word's place on the curve."""
        place = self.idf / self.idf.max().clamp(min=1e-6) * (len(self.curve) - 1)
        self.knot.copy_(place.long().clamp(max=len(self.curve) - 2))
        self.share.copy_(place - self.knot)

    def _export_parts(self, folder: Path) -> list[tuple[str, str]]:
        with torch.no_grad():
            known = 1 + torch.arange(len(self.cap) - 1)
            cap = self.cap[known].long()
            token = torch.repeat_interleave(known, cap)
            later = torch.arange(len(token)) - torch.repeat_interleave(cap.cumsum(0) - cap, cap)
            times = (later + 1.0).sqrt() - later.sqrt()
            rows = self.vectors[token] * (self.weights()[token] * times)[:, None]
            table = torch.cat([torch.zeros(1, self.dim), rows.float()])
        save_file({"embedding.weight": table}, folder / WEIGHTS_FILE)
        words = sorted(self.tokenizer.get_vocab(), key=self.tokenizer.get_vocab().__getitem__)
        listed = [
            UNKNOWN,
            *(words[t] + _MARK * k for t, k in zip(token.tolist(), later.tolist(), strict=True)),
        ]
        model = models.WordLevel({word: index for index, word in enumerate(listed)}, unk_token=UNKNOWN)
        _marking(self.tokenizer, model, int(cap.max())).save(str(folder / TOKENIZER_FILE))
        write_json(folder / "1_Normalize" / CONFIG_FILE, {})
        return [("", "StaticEmbedding"), ("1_Normalize", "Normalize")]


def _keep(text: Int[Tensor, " pairs"], texts: int, dropout: float) -> Bool[Tensor, " pairs"]:
    """Which words stay; a text that would lose all of them keeps them."""
    keep = torch.rand(len(text), device=text.device) >= dropout
    left = torch.zeros(texts, dtype=torch.long, device=text.device).index_add_(0, text, keep.long())
    return keep | (left[text] == 0)


def _marking(tokenizer: Tokenizer, model: Any, most: int) -> Tokenizer:
    """A tokenizer whose words carry as many marks as the same word occurs again later in the text.

    With it a plain sum of token vectors can count a word ``sqrt(tf)`` times: the word with ``k`` marks
    stands for ``sqrt(k + 1) - sqrt(k)`` of it. Pass ``k`` adds the ``k``-th mark; the lookahead never
    backtracks into an occurrence that it has counted.

    Args:
        tokenizer: The one to extend; splits runs of word characters.
        model: Its vocabulary, words with marks included.
        most: Times that any word counts at most.
    """
    passes = [normalizers.Replace(_MARK, " ")]
    for k in range(1, most + 1):
        word = rf"\b(\w+)\b{_MARK}{{{k - 1}}}(?!{_MARK})" if k > 1 else r"\b(\w+)\b"
        again = Regex(rf"{word}\K(?=(?>[\s\S]*?\b\1\b){{{k}}})")
        passes.append(normalizers.Replace(again, _MARK))
    marking = Tokenizer(model)
    marking.normalizer = normalizers.Sequence([tokenizer.normalizer, *passes])
    marking.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{WORDS}{_MARK}*"), behavior="removed", invert=True)
    return marking
