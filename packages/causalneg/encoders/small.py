"""A small transformer over words, trained from scratch: it sees who did what to whom.

Over 400 lines: the export as EuroBERT stands beside the layers whose weights it rearranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Complex, Float, Int, Int64
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from causalneg.encoders.base import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Encoder,
    inverse_softplus,
    load_weights,
    normalize,
    write_json,
    write_pooling,
)
from causalneg.encoders.packing import Packing, run_packed
from causalneg.encoders.vocabulary import (
    START,
    UNKNOWN,
    WORDS_AND_STOPS,
    WordEncoder,
    inverse_document_frequency,
    read_tokenizer,
    token_rows,
    word_tokenizer,
)
from common.config import Dropout, Positive, checked
from common.ragged import Ragged

_EPS = 1e-5


class _Layer(nn.Module):
    """Attention and a gated MLP, each on the norm of what runs through, each narrower than that."""

    def __init__(self, width: int, attention: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width, eps=_EPS, bias=False)
        self.qkv = nn.Linear(width, 3 * attention, bias=False)
        self.attention_out = nn.Linear(attention, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width, eps=_EPS, bias=False)
        self.mlp_in = nn.Linear(width, 2 * inner, bias=False)
        self.mlp_out = nn.Linear(inner, width, bias=False)

    def projected(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows three_attention"]:
        """Queries, keys and values."""
        out: Tensor = self.qkv(self.attention_norm(x))
        return out

    def forward(
        self,
        x: Float[Tensor, "tokens width"],
        qkv: Float[Tensor, "tokens three_attention"],
        turn: Complex[Tensor, "tokens 1 half"],
        packing: Packing,
    ) -> Float[Tensor, "tokens width"]:
        x = self._onto(x, self._attend(qkv, turn, packing), self.attention_out.weight)
        value, gate = self.mlp_in(self.mlp_norm(x)).chunk(2, dim=-1)
        return self._onto(x, F.silu(value) * gate, self.mlp_out.weight)

    def _onto(self, x: Tensor, branch: Tensor, weight: Tensor) -> Tensor:
        """What runs through, plus a branch's output."""
        if self.dropout > 0 or torch.is_autocast_enabled(x.device.type):
            return x + F.dropout(F.linear(branch, weight), self.dropout, self.training)
        return torch.addmm(x, branch, weight.T)

    def _attend(self, qkv: Tensor, turn: Tensor, packing: Packing) -> Tensor:
        tokens, attention = len(qkv), qkv.shape[1] // 3
        qk, v = torch.split(qkv, [2 * attention, attention], dim=1)
        full = qk.float() if qk.dtype in (torch.float16, torch.bfloat16) else qk
        pairs = torch.view_as_complex(full.reshape(tokens, 2 * self.heads, -1, 2))
        turned = torch.view_as_real(pairs * turn).to(qkv.dtype).reshape(tokens, 2 * self.heads, -1)
        q, k = turned.chunk(2, dim=1)
        return packing.attention(q, k, v.reshape(tokens, self.heads, -1)).reshape(tokens, attention)


@checked
class SmallTransformer(WordEncoder):
    """Pre-norm transformer over words with rotary positions and weighted mean pooling.

    ``x_t = v_t``; per layer ``x += attention(norm(x))``, ``x += mlp(norm(x))``;
    ``e = sum_t softplus(b_t) norm(x_t)``, divided by its length.

    It is wide where words are told apart (``width``) and narrow where they are mixed (``attention``,
    ``inner``): names that no training query held still find themselves, and a token costs little. A
    token's weight in the pooling, ``softplus(b_t)``, is learned and starts as its inverse document
    frequency. As both output projections start small, an untrained encoder is a weighted bag of random
    word vectors: it matches words, and learns order from there.

    Tokens are packed. Texts are sorted by length inside, and texts of equal length share one attention
    product, so that nothing is padded or masked anywhere. What the first layer projects depends on the
    word alone and is computed once per word.

    It is exported as EuroBERT (Boizard et al. 2025), whose norm does not subtract the mean. As all that
    is written into ``x`` is linear, the mean is taken out of the weights instead.

    Args:
        tokenizer: Of :func:`causalneg.encoders.vocabulary.word_tokenizer`, with ``start``.
        weight: Weight of each token in the pooling before training; positive.
        width: Length of a token's vector and of a text's.
        layers: Number of layers.
        attention: Width inside attention, over all heads.
        heads: Attention heads; ``attention / heads`` must be even, ``width / heads`` whole.
        inner: Width inside the MLP.
        max_tokens: Tokens of a text that are read, the one that starts it included.
        dropout: Share of what the branches add that is dropped in training.
        theta: Base of the rotary wave lengths.
        seed: Of the random weights.

    Raises:
        ValueError: An argument is out of range or ``weight`` does not fit the tokenizer.
    """

    kind: ClassVar[str] = "small"
    default_learning_rate: ClassVar[float] = 1e-3

    def __init__(
        self,
        tokenizer: Tokenizer,
        weight: Float[np.ndarray, " words"],
        *,
        width: int = 256,
        layers: Positive = 1,
        attention: Positive = 64,
        heads: Positive = 4,
        inner: Positive = 64,
        max_tokens: Annotated[int, Ge(2)] = 512,
        dropout: Dropout = 0.0,
        theta: float = 10000.0,
        seed: int = 0,
    ) -> None:
        super().__init__(dim=width, max_tokens=max_tokens)
        size = tokenizer.get_vocab_size()
        if len(weight) != size or not (np.asarray(weight) > 0).all():
            raise ValueError(f"the tokenizer has {size} tokens: weight must be as many positive numbers")
        if attention % (2 * heads):
            raise ValueError(f"attention must be a multiple of twice the heads, got {attention} and {heads}")
        if width % heads:
            raise ValueError(f"width must be a multiple of the heads, got {width} and {heads}")
        if tokenizer.token_to_id(START) is None:
            raise ValueError(f"the tokenizer has no token {START}; make it with start=True")
        self.tokenizer = tokenizer
        self.inner = inner
        self.attention = attention
        self.heads = heads
        self.dropout = dropout
        self.theta = theta
        self.token = nn.Embedding(size, width)
        self.layers = nn.ModuleList(_Layer(width, attention, heads, inner, dropout) for _ in range(layers))
        self.last_norm = nn.LayerNorm(width, eps=_EPS, bias=False)
        self.word_weight = nn.Parameter(inverse_softplus(torch.as_tensor(weight, dtype=torch.float32)))
        half = attention // heads // 2
        self._speed = theta ** (-torch.arange(half, dtype=torch.float64) / half)
        self._turns: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._start(torch.Generator().manual_seed(seed))

    @classmethod
    def build(
        cls,
        texts: Sequence[str],
        *,
        width: int = 256,
        layers: int = 1,
        attention: int = 64,
        heads: int = 4,
        inner: int = 64,
        max_tokens: int = 512,
        dropout: float = 0.0,
        min_count: int = 1,
        max_words: int | None = None,
        pattern: str = WORDS_AND_STOPS,
        seed: int = 0,
    ) -> SmallTransformer:
        """An untrained encoder with the vocabulary of a corpus.

        Words that have no token are spelled: the longest known beginning, then letters.

        Args:
            texts: The corpus.
            width: Length of a token's vector and of a text's.
            layers: Number of layers.
            attention: Width inside attention, over all heads.
            heads: Attention heads.
            inner: Width inside the MLP.
            max_tokens: Tokens of a text that are read.
            dropout: Share of what the branches add that is dropped in training.
            min_count: Times a word must occur.
            max_words: Words to keep, the most frequent; all by default.
            pattern: What a word is.
            seed: Of the random weights.
        """
        tokenizer, frequency = word_tokenizer(
            texts, min_count=min_count, max_words=max_words, pattern=pattern, spell=True, start=True
        )
        idf = inverse_document_frequency(frequency, len(texts))
        idf[frequency == 0] = np.median(idf)  # letters that only a word out of the corpus will need
        return cls(
            tokenizer,
            np.maximum(idf, 1e-2),
            width=width,
            layers=layers,
            attention=attention,
            heads=heads,
            inner=inner,
            max_tokens=max_tokens,
            dropout=dropout,
            seed=seed,
        )

    @torch.no_grad()
    def _start(self, generator: torch.Generator) -> None:
        """Random weights: unit variance everywhere but at the outputs of the branches."""
        nn.init.normal_(self.token.weight, generator=generator)
        for layer in self.layers:
            for name, weight in layer.named_parameters():
                if weight.ndim == 2:
                    std = weight.shape[1] ** -0.5
                    nn.init.normal_(
                        weight, std=0.1 * std if name.endswith("out.weight") else std, generator=generator
                    )

    def _tokenize(self, texts: list[str]) -> tuple[Ragged, Int64[np.ndarray, " cut"]]:
        rows = token_rows(self.tokenizer, texts)
        cut = np.flatnonzero(rows.lengths > self.max_tokens)
        return (rows.clip(self.max_tokens, "first") if cut.size else rows), cut

    def _turn(self, place: Int[Tensor, " tokens"]) -> Complex[Tensor, "tokens 1 half"]:
        """``exp(i p theta^(-j / half))`` for every token's position and every pair of entries."""
        kind = torch.complex128 if self.token.weight.dtype == torch.float64 else torch.complex64
        key = (place.device, kind)
        if key not in self._turns:
            angle = torch.arange(self.max_tokens, dtype=torch.float64)[:, None] * self._speed
            self._turns[key] = torch.polar(torch.ones_like(angle), angle).to(*key)
        return self._turns[key][place][:, None]

    def forward(
        self, ids: Int[Tensor, " tokens"], offsets: Int[Tensor, " texts_plus_one"], *, query: bool
    ) -> Float[Tensor, "texts dim"]:
        """Vectors of packed texts.

        Args:
            ids: Token ids, one text after the other; every text has the token that starts it.
            offsets: Where each text begins, and the end of the last.
            query: Whether the texts are queries; both are read alike.

        Raises:
            ValueError: A text has no token, or more than ``max_tokens``.
        """
        if len(offsets) < 2:
            return self.last_norm.weight.new_zeros(0, self.dim)
        longest = int(offsets.diff().max())
        if longest > self.max_tokens:
            raise ValueError(f"a text has {longest} tokens, but the encoder reads {self.max_tokens}")
        if len(ids) < len(self.word_weight):
            words, ids = torch.unique(ids.long(), return_inverse=True)
            vectors, weight = self.token(words), self.word_weight[words]
        else:
            vectors, weight = self.token.weight, self.word_weight
        weight = F.softplus(weight)
        first, *others = self.layers
        qkv = first.projected(vectors)  # type: ignore[operator]

        def run(word: Int[Tensor, " tokens"], packing: Packing) -> Float[Tensor, "texts dim"]:
            turn = self._turn(packing.place)
            x = first(F.embedding(word, vectors), F.embedding(word, qkv), turn, packing)
            for layer in others:
                x = layer(x, layer.projected(x), turn, packing)  # type: ignore[operator]
            return packing.weighted_sum(weight[word], self.last_norm(x))

        return normalize(run_packed(ids, offsets, run))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices; word vectors; norms without decay; pooling weights without decay and faster."""
        matrices = [p for layer in self.layers for p in layer.parameters() if p.ndim == 2]
        norms = [p for name, p in self.named_parameters() if name.endswith("norm.weight")]
        return [
            {"params": matrices},
            {"params": [self.token.weight], "decay": False, "scale": 1.0},
            {"params": norms, "decay": False},
            {"params": [self.word_weight], "decay": False, "scale": 10.0},
        ]

    def settings(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        return {
            "width": self.dim,
            "layers": len(self.layers),
            "attention": self.attention,
            "heads": self.heads,
            "inner": self.inner,
            "max_tokens": self.max_tokens,
            "dropout": self.dropout,
            "theta": self.theta,
        }

    @classmethod
    def _load_parts(cls, folder: Path, settings: dict[str, Any]) -> Encoder:
        tokenizer = read_tokenizer(folder / TOKENIZER_FILE)
        encoder = cls(tokenizer, np.ones(tokenizer.get_vocab_size()), **settings)
        load_weights(encoder, folder / WEIGHTS_FILE)
        return encoder

    def _export_parts(self, folder: Path) -> list[tuple[str, str]]:
        weights = self._eurobert()
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(
            folder / CONFIG_FILE,
            {
                "model_type": "eurobert",
                "architectures": ["EuroBertModel"],
                "vocab_size": len(self.word_weight),
                "hidden_size": self.dim,
                "intermediate_size": self.inner,
                "num_hidden_layers": len(self.layers),
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.heads,
                "head_dim": self.attention // self.heads,
                "hidden_act": "silu",
                "max_position_embeddings": self.max_tokens,
                "rms_norm_eps": _EPS,
                "rope_theta": self.theta,
                "rope_parameters": {"rope_type": "default", "rope_theta": self.theta},
                "attention_bias": False,
                "mlp_bias": False,
                "pad_token_id": 0,
                "bos_token_id": None,
                "eos_token_id": None,
                "mask_token_id": 0,
                "dtype": "float32",
            },
        )
        self.tokenizer.save(str(folder / TOKENIZER_FILE))
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": self.max_tokens,
                "unk_token": UNKNOWN,
                "pad_token": UNKNOWN,
                "cls_token": START,
                "model_input_names": ["input_ids", "attention_mask"],
                "clean_up_tokenization_spaces": False,
            },
        )
        write_json(
            folder / "sentence_bert_config.json", {"max_seq_length": self.max_tokens, "do_lower_case": False}
        )
        vocabulary = self.tokenizer.get_vocab()
        words = sorted(vocabulary, key=vocabulary.__getitem__)
        weight = F.softplus(self.word_weight.detach().cpu().float())
        write_json(
            folder / "1_WordWeights" / CONFIG_FILE,
            {
                "vocab": words,
                "word_weights": dict(zip(words, weight.tolist(), strict=True)),
                "unknown_word_weight": 1.0,
            },
        )
        save_file({"emb_layer.weight": weight[:, None]}, folder / "1_WordWeights" / WEIGHTS_FILE)
        write_pooling(folder / "2_Pooling", self.dim, "mean")
        write_json(folder / "3_Normalize" / CONFIG_FILE, {})
        return [
            ("", "Transformer"),
            ("1_WordWeights", "WordWeights"),
            ("2_Pooling", "Pooling"),
            ("3_Normalize", "Normalize"),
        ]

    def _eurobert(self) -> dict[str, Tensor]:
        """The weights as EuroBERT names them and wants them."""
        half, heads = len(self._speed), self.heads
        state = {name: weight.detach().cpu().double() for name, weight in self.state_dict().items()}
        found = {
            "embed_tokens.weight": _centred(state["token.weight"].T).T,
            "norm.weight": state["last_norm.weight"],
        }
        for layer in range(len(self.layers)):
            at = f"layers.{layer}."
            q, k, v = state[f"{at}qkv.weight"].chunk(3)
            for name, weight in (("q", q), ("k", k)):  # pairs that turn: side by side here, two halves there
                halves = weight.reshape(heads, half, 2, -1).transpose(1, 2).reshape(2 * half * heads, -1)
                found[f"{at}self_attn.{name}_proj.weight"] = halves
            value, gate = state[f"{at}mlp_in.weight"].chunk(2)
            found |= {
                f"{at}self_attn.v_proj.weight": v,
                f"{at}self_attn.o_proj.weight": _centred(state[f"{at}attention_out.weight"]),
                f"{at}mlp.gate_proj.weight": value,
                f"{at}mlp.up_proj.weight": gate,
                f"{at}mlp.down_proj.weight": _centred(state[f"{at}mlp_out.weight"]),
                f"{at}input_layernorm.weight": state[f"{at}attention_norm.weight"],
                f"{at}post_attention_layernorm.weight": state[f"{at}mlp_norm.weight"],
            }
        return {name: weight.float().contiguous() for name, weight in found.items()}


def _centred(weight: Float[Tensor, "width columns"]) -> Float[Tensor, "width columns"]:
    """Weights whose outputs have mean zero over the width."""
    return weight - weight.mean(0)
