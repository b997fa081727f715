"""Small language models from scratch: a tokenizer trained on given texts, and a Qwen3 beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Padding, and the marks of a turn."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""How a conversation is written down."""


def train_tokenizer(texts: Iterable[str], vocabulary: int = 4096) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template.

    Args:
        texts: What it is trained on.
        vocabulary: Number of tokens, at most.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    make: Any = PreTrainedTokenizerFast
    found: PreTrainedTokenizerFast = make(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[2]
    )
    found.chat_template = CHAT_TEMPLATE
    return found


def make_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 2,
    inner: int = 128,
    context: int = 8192,
    seed: int = 0,
) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights.

    Args:
        tokenizer: Its tokenizer.
        width: Width of the hidden states.
        layers: Number of layers.
        heads: Number of heads; half as many for keys and values, if they are even.
        inner: Width inside the layers.
        context: Longest text, in tokens.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    make: Any = Qwen3ForCausalLM
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads if heads % 2 else heads // 2,
        head_dim=width // heads,
        intermediate_size=inner,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    model: Qwen3ForCausalLM = make(config)
    return model


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> Path:
    """Write both into a folder, as any library for such models reads them.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        out: The folder.
    """
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
