"""Models and tokenizers of Hugging Face: fetched, made with random weights, trained on a corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoModel, PreTrainedTokenizerFast

from common.errors import BackendError, DataError, describe_os_error

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def core_of(model: Any) -> Any:
    """What peft wraps, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def looks_back(core: Any) -> bool:
    """Whether tokens only see those before them."""
    return any(getattr(module, "is_causal", False) for module in core.modules())


def fetch(loader: Any, name: str | Path | None, options: Mapping[str, Any]) -> Any:
    """``from_pretrained``, its many errors made one line."""
    wanted = "config.json, model.safetensors, tokenizer.json and tokenizer_config.json"
    here = Path(str(name)).is_dir()
    try:
        return loader.from_pretrained(str(name), **options)
    except (OSError, ValueError, ImportError) as error:
        lines = str(error) if not isinstance(error, OSError) else describe_os_error(error)
        reason = " ".join(lines.split())
        if here:
            raise DataError(f"{name}: cannot be loaded as a model ({reason}); it needs {wanted}") from error
        raise BackendError(
            f"model '{name}' is no folder here and could not be fetched ({reason}); "
            f"put {wanted} into a folder and give its path"
        ) from error


def untrained(config: Any, options: Mapping[str, Any]) -> Any:
    """A model with random weights."""
    return AutoModel.from_config(config, **options)  # type: ignore[no-untyped-call]


def with_lora(model: Any, lora: Mapping[str, Any]) -> Any:
    """A model with low-rank adapters, which alone are trained.

    Raises:
        ValueError: peft refuses the arguments.
    """
    from peft import LoraConfig, get_peft_model  # takes seconds, and few need it

    options = {"target_modules": "all-linear", **lora}
    if isinstance(getattr(model, "pooler", None), nn.Module):
        options.setdefault("exclude_modules", r".*pooler.*")
    try:
        return get_peft_model(model, LoraConfig(**options))
    except TypeError as error:
        raise ValueError(f"lora: {error}") from error


def append_ending(tokenizer: Any) -> None:
    """Make a tokenizer end every text with its last token, unless it does already."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    end, number = tokenizer.eos_token, tokenizer.eos_token_id
    ids = backend.encode("a").ids
    if ids and ids[-1] == number:
        return
    ending = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, number)])
    before = backend.post_processor
    backend.post_processor = ending if before is None else processors.Sequence([before, ending])


def byte_pair_tokenizer(texts: Sequence[str], size: int, *, framed: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of lower-cased byte pairs for a transformer with random weights.

    (A trainer of word pieces would number pieces in the order of a hash map, differently each time.)

    Args:
        texts: The corpus.
        size: Tokens at most; more than the special ones and the 256 bytes.
        framed: Whether texts stand between ``[CLS]`` and ``[SEP]``.

    Raises:
        ValueError: There are no texts, or no room for pairs.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(_SPECIAL) + len(alphabet)
    if not texts:
        raise ValueError("a config without a tokenizer needs texts to train one on")
    if size <= least:
        raise ValueError(f"vocabulary must be more than {least}, got {size}")
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    if framed:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )
