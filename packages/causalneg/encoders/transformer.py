"""Any encoder or decoder of Hugging Face, on packed tokens where its family allows it.

Over 400 lines: one class whose parts (build, tokenise, run packed or padded, save, export) share its
tokenizer.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
)

from causalneg.encoders.base import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Dtype,
    Encoder,
    Pooling,
    load_weights,
    normalize,
    read_json,
    save_weights,
    write_json,
    write_pooling,
)
from causalneg.encoders.hugging_face import (
    append_ending,
    byte_pair_tokenizer,
    core_of,
    fetch,
    looks_back,
    untrained,
    with_lora,
)
from causalneg.encoders.models import locate_model
from causalneg.encoders.noted import Noted, read_noted
from causalneg.encoders.packing import Packing, run_packed
from common.ragged import Ragged

Padding = Literal["auto", "none", "left", "right"]
"""Where texts of a batch are filled up; ``"auto"``: nowhere on a CPU, if the family allows it, else right."""

PACKED_FAMILIES = frozenset(
    ["bert", "electra", "llama", "mistral", "modernbert", "qwen2", "qwen3", "roberta", "xlm-roberta"]
)
"""Families whose attention can be replaced by one over packed tokens."""

_SHIFTED = frozenset(
    ["roberta", "xlm-roberta", "camembert", "xmod", "mpnet"]
)  # positions begin after the padding's
_ATTENTION = "causalneg_packed"
_MODEL_CONFIG = "model_config.json"
_TOKENIZER = "tokenizer"


def instruction_prompt(task: str) -> str:
    """What instructed encoders want in front of a query: ``Instruct: TASK`` and ``Query:`` on a new line."""
    return f"Instruct: {task}\nQuery: "


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer, with ``[1, heads, tokens, width]``."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
    out = packing.attention(q, k, v, scale=scaling, causal=causal, window=sliding_window, dropout=dropout)
    return out[None], None


AttentionInterface.register(_ATTENTION, _packed_attention)


class HFEncoder(Encoder):
    """A transformer of Hugging Face with pooling.

    Families in :data:`PACKED_FAMILIES` run on packed tokens on a CPU: texts of equal length share an
    attention product and nothing is padded. Others are padded in chunks of like length, so that
    little is wasted. Either way, and for padding on either side, a text's vector is the same: positions
    are counted from its first token.

    Use :meth:`build`, not the constructor.

    Args:
        model: The transformer, or one that peft wraps.
        tokenizer: Its tokenizer, a fast one.
        pooling: Which tokens make the vector.
        query_prompt: What is put in front of a query.
        document_prompt: What is put in front of a document.
        max_tokens: Tokens of a text that are read, special ones included.
        padding: Where texts are filled up.
        append_eos: Whether every text ends with the token that ends texts.
        lora: Arguments of peft's LoraConfig, or None.
        gradient_checkpointing: Whether layers are run again in the backward pass, to save memory.
        trust_remote_code: Whether the model came with code of its own.

    Raises:
        ValueError: An argument is out of range or does not fit the model.
    """

    kind: ClassVar[str] = "transformer"
    default_learning_rate: ClassVar[float] = 5e-5

    # Larger arrays than these make are given back to the system after each use, and cleared for the next.
    encoded_at_once: ClassVar[int] = 8192

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        pooling: Pooling = "mean",
        query_prompt: str = "",
        document_prompt: str = "",
        max_tokens: int = 512,
        padding: Padding = "auto",
        append_eos: bool = False,
        lora: Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        core = core_of(model)
        super().__init__(
            dim=core.config.hidden_size,
            max_tokens=max_tokens,
            query_prompt=query_prompt,
            document_prompt=document_prompt,
        )
        for name, value, choices in (("pooling", pooling, Pooling), ("padding", padding, Padding)):
            if value not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")
        family = core.config.model_type
        if padding == "none" and family not in PACKED_FAMILIES:
            raise ValueError(
                f"padding 'none' works for {', '.join(sorted(PACKED_FAMILIES))}, not for {family}"
            )
        shift = core.embeddings.padding_idx + 1 if family in _SHIFTED else 0
        limit = getattr(core.config, "max_position_embeddings", None)
        if limit is not None and max_tokens > limit - shift:
            raise ValueError(f"max_tokens is {max_tokens}, but the model reads {limit - shift} at most")
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(f"the tokenizer {type(tokenizer).__name__} is not a fast one (tokenizer.json)")
        if append_eos and tokenizer.eos_token_id is None:
            raise ValueError("append_eos is set, but the tokenizer has no token that ends texts")
        self.model = model
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.padding = padding
        self.append_eos = append_eos
        self.lora = dict(lora) if lora is not None else None
        self.gradient_checkpointing = gradient_checkpointing
        self.trust_remote_code = trust_remote_code
        self._shift = shift
        self._attention = core.config._attn_implementation
        self._places = "position_ids" in inspect.signature(core.forward).parameters
        core.config.use_cache = False
        if append_eos:
            append_ending(tokenizer)
        if gradient_checkpointing:
            core.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        pooler = getattr(core, "pooler", None)
        if isinstance(pooler, nn.Module):  # what the family does with a text's first token; not used here
            pooler.requires_grad_(False)

    @property
    def core(self) -> Any:
        """The transformer itself, adapters inside."""
        return core_of(self.model)

    @classmethod
    def build(
        cls,
        texts: Sequence[str] = (),
        *,
        model: str | Path | None = None,
        config: Mapping[str, Any] | None = None,
        tokenizer: str | Path | None = None,
        vocabulary: int = 8192,
        random_weights: bool = False,
        pooling: Pooling | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        instruction: str | None = None,
        max_tokens: Annotated[int, Ge(1)] | None = None,
        padding: Padding = "auto",
        append_eos: bool | None = None,
        dtype: Dtype = "float32",
        lora: Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
        revision: str | None = None,
        offline: bool = False,
        seed: int = 0,
    ) -> HFEncoder:
        """A transformer by name, by path, or by its configuration.

        A folder of sentence-transformers brings its own pooling, prompts, longest text and ending; they hold
        wherever nothing else is asked for. So a folder gives the same vectors however it is named.

        Args:
            texts: With ``config`` and without ``tokenizer``: the corpus that a tokenizer is trained on.
            model: A folder, a packaged model (``minilm``, with the extra ``models``), or a name on the
                Hugging Face hub. Weights must be safetensors.
            config: Instead of ``model``: ``model_type`` and the family's own settings; random weights.
            tokenizer: Name or folder; that of ``model`` by default.
            vocabulary: Size of a trained tokenizer.
            random_weights: Whether to take only the configuration of ``model``.
            pooling: By default the folder's own; else the last token for families that only look back, and
                the mean for others.
            query_prompt: What is put in front of a query; by default the folder's own, else nothing.
            document_prompt: What is put in front of a document; by default the folder's own, else nothing.
            instruction: Instead of ``query_prompt``: the task, as :func:`instruction_prompt` words it.
            max_tokens: Tokens of a text that are read, special ones included; by default the folder's own,
                else 512, or what the model reads at most.
            padding: Where texts are filled up.
            append_eos: Whether every text ends with the token that ends texts; by default with
                ``pooling="last"``, unless the folder is of sentence-transformers, whose tokenizer decides.
            dtype: Type of the weights.
            lora: Arguments of peft's ``LoraConfig``; ``target_modules`` is ``"all-linear"`` by default.
            gradient_checkpointing: Whether layers are run again in the backward pass.
            trust_remote_code: Whether code that comes with the model may run.
            revision: Branch, tag or commit on the hub.
            offline: Whether to look only on this machine.
            seed: Of random weights.

        Raises:
            BackendError: The model or tokenizer is neither here nor can be fetched.
            DataError: Its folder lacks a file, or holds a module that cannot be read here.
            ValueError: An argument is out of range, or arguments do not go together.
        """
        if (model is None) == (config is None):
            raise ValueError("give either the model's name or folder, or its config")
        if instruction is not None and query_prompt:
            raise ValueError("give either an instruction or a query_prompt")
        if model is not None:
            model = locate_model(model)
        noted = read_noted(Path(model)) if model is not None and Path(model).is_dir() else None
        if noted is not None:
            model = noted.home
        if dtype not in get_args(Dtype):
            raise ValueError(f"dtype must be one of {', '.join(get_args(Dtype))}, got {dtype!r}")
        hub = {"trust_remote_code": trust_remote_code, "local_files_only": offline, "revision": revision}
        made = None
        if config is not None:
            rest = dict(config)
            family = rest.pop("model_type", None)
            if family is None:
                raise ValueError("config must say model_type")
            if tokenizer is None:
                with torch.device("meta"):
                    causal = looks_back(untrained(AutoConfig.for_model(family, **rest), {}))
                made = byte_pair_tokenizer(texts, vocabulary, framed=not causal)
                rest = {
                    "vocab_size": len(made),
                    "pad_token_id": 0,
                    "eos_token_id": 3,
                    "bos_token_id": None,
                } | rest
            settings = AutoConfig.for_model(family, **rest)
        else:
            settings = fetch(AutoConfig, model, hub)
        if made is None:
            made = fetch(AutoTokenizer, tokenizer if tokenizer is not None else model, hub)
        weights = {"dtype": getattr(torch, dtype), "trust_remote_code": trust_remote_code}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if config is not None or random_weights:
                core = untrained(settings, weights)
            else:
                core = fetch(AutoModel, model, hub | weights | {"config": settings, "use_safetensors": True})
            if lora is not None:
                core = with_lora(core, lora)
        departures = (
            []
            if noted is None
            else noted.departures(
                pooling=pooling,
                query_prompt=query_prompt,
                document_prompt=document_prompt,
                max_tokens=max_tokens,
            )
        )
        if noted is None:
            noted = Noted(Path())
        if pooling is None:
            pooling = noted.pooling or ("last" if looks_back(core_of(core)) else "mean")
        if append_eos is None:
            append_eos = pooling == "last" and not noted.own_ending
        if instruction is not None:
            query_prompt = instruction_prompt(instruction)
        limit = getattr(core_of(core).config, "max_position_embeddings", None) or 512
        longest = limit - 2 if core_of(core).config.model_type in _SHIFTED else limit
        if max_tokens is None:
            own = noted.max_tokens
            max_tokens = own if own is not None and own <= limit else min(512, longest)
        built = cls(
            core,
            made,
            pooling=pooling,
            query_prompt=noted.query_prompt if query_prompt is None else query_prompt,
            document_prompt=noted.document_prompt if document_prompt is None else document_prompt,
            max_tokens=max_tokens,
            padding=padding,
            append_eos=append_eos,
            lora=lora,
            gradient_checkpointing=gradient_checkpointing,
            trust_remote_code=trust_remote_code,
        )
        built.departures = tuple(departures)
        return built

    def _tokenize(self, texts: list[str]) -> tuple[Ragged, Int64[np.ndarray, " cut"]]:
        ask: Any = self.tokenizer
        values: list[np.ndarray] = []  # arrays, batch by batch: lists of numbers take ten times the memory
        lengths: list[int] = []
        cut: list[int] = []
        for start in range(0, len(texts), 1024):
            part = texts[start : start + 1024]
            found = ask(part, padding=False, truncation=False, verbose=False, return_attention_mask=False)
            ids = found["input_ids"]
            long = [i for i, row in enumerate(ids) if len(row) > self.max_tokens]
            if long:
                again = ask(
                    [part[i] for i in long], padding=False, truncation=True, max_length=self.max_tokens
                )
                for i, row in zip(long, again["input_ids"], strict=True):
                    ids[i] = row
            cut += [start + i for i in long]
            batch = Ragged.from_lists([row or [self._filler] for row in ids], dtype=np.int32)
            values.append(batch.values)
            lengths += batch.lengths.tolist()
        whole = np.concatenate(values) if values else np.zeros(0, dtype=np.int32)
        return Ragged(whole, np.cumsum([0, *lengths])), np.array(cut, dtype=np.int64)

    @property
    def _filler(self) -> int:
        """What padded places and texts without any token hold."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0):
            if token is not None:
                return int(token)
        raise AssertionError

    def forward(
        self, ids: Int[Tensor, " tokens"], offsets: Int[Tensor, " texts_plus_one"], *, query: bool
    ) -> Float[Tensor, "texts dim"]:
        """Vectors of packed texts.

        Args:
            ids: Token ids, one text after the other; no text is empty.
            offsets: Where each text begins, and the end of the last.
            query: Whether the texts are queries; both are read alike.
        """
        if len(offsets) < 2:
            return torch.zeros(0, self.dim, device=ids.device)
        packed = self.padding == "none" or (
            self.padding == "auto"
            and ids.device.type == "cpu"
            and self.core.config.model_type in PACKED_FAMILIES
        )
        wanted = _ATTENTION if packed else self._attention
        if self.core.config._attn_implementation != wanted:
            self.core.set_attn_implementation(wanted)
        if packed:
            return run_packed(ids, offsets, self._run_packed)
        return self._run_padded(ids, offsets)

    def _run_packed(self, ids: Int[Tensor, " tokens"], packing: Packing) -> Float[Tensor, "texts dim"]:
        place = packing.place + self._shift
        out = self.model(input_ids=ids[None], position_ids=place[None], packing=packing).last_hidden_state[0]
        pool = {"mean": packing.mean, "last": packing.last, "cls": packing.first}[self.pooling]
        return normalize(pool(out))

    def _run_padded(
        self, ids: Int[Tensor, " tokens"], offsets: Int[Tensor, " texts_plus_one"]
    ) -> Float[Tensor, "texts dim"]:
        length, order = torch.sort(offsets.diff(), stable=True)
        if int(length[0]) < 1:
            raise ValueError(f"text {int(order[0])} has no token")
        start = offsets[:-1][order]
        out = []
        for low, high in _tight(length.tolist()):
            part = length[low:high, None]
            longest = int(part[-1])
            column = torch.arange(longest, device=ids.device)
            place = column - (longest - part) if self.padding == "left" else column.expand(high - low, -1)
            valid = (place >= 0) & (place < part)
            inside = place.clamp(min=0).minimum(part - 1)
            cells = torch.where(valid, ids[start[low:high, None] + inside].long(), self._filler)
            extra = {"position_ids": inside + self._shift} if self._places else {}
            states = self.model(input_ids=cells, attention_mask=valid.long(), **extra).last_hidden_state
            if self.pooling == "mean":
                out.append((states * valid[..., None]).sum(1) / part.to(states.dtype))
            else:
                wanted = (place == (part - 1 if self.pooling == "last" else 0)) & valid
                out.append(states[wanted])
        return normalize(torch.cat(out)[torch.argsort(order)])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable matrices; trainable norms and biases without decay."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trainable if p.ndim >= 2]},
            {"params": [p for p in trainable if p.ndim < 2], "decay": False},
        ]

    def settings(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        return {
            "pooling": self.pooling,
            "query_prompt": self.query_prompt,
            "document_prompt": self.document_prompt,
            "max_tokens": self.max_tokens,
            "padding": self.padding,
            "append_eos": self.append_eos,
            "lora": self.lora,
            "gradient_checkpointing": self.gradient_checkpointing,
            "trust_remote_code": self.trust_remote_code,
        }

    def _model_config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self.core.config.to_json_string(use_diff=False))
        for key in ("_name_or_path", "transformers_version", "dtype"):
            config.pop(key, None)
        return config | {"dtype": str(self.core.dtype).removeprefix("torch.")}

    def _save_parts(self, folder: Path) -> None:
        save_weights(self.model, folder / WEIGHTS_FILE)
        write_json(folder / _MODEL_CONFIG, self._model_config())
        self._save_tokenizer(folder / _TOKENIZER)

    def _save_tokenizer(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        if self.append_eos:  # families' own classes would split texts anew, without what we append
            path = folder / "tokenizer_config.json"
            write_json(path, read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast"})

    @classmethod
    def _load_parts(cls, folder: Path, settings: dict[str, Any]) -> Encoder:
        config, settings = read_json(folder / _MODEL_CONFIG), dict(settings)
        dtype = getattr(torch, settings.pop("dtype", None) or config["dtype"])
        trust = bool(settings.get("trust_remote_code", False))
        with torch.random.fork_rng():
            made = AutoConfig.for_model(config.pop("model_type"), **config)
            model = untrained(made, {"dtype": dtype, "trust_remote_code": trust})
            if settings.get("lora") is not None:
                model = with_lora(model, settings["lora"])
        load_weights(model, folder / WEIGHTS_FILE)
        hub = {"trust_remote_code": trust, "local_files_only": True}
        tokenizer = fetch(AutoTokenizer, folder / _TOKENIZER, hub)
        return cls(model, tokenizer, **settings)

    def _hash_vocabulary(self, update: Callable[[bytes], object]) -> None:
        update(json.dumps(self._model_config(), sort_keys=True).encode())
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        backend |= {"truncation": None, "padding": None}  # these are left as the last call had them
        update(json.dumps(backend, sort_keys=True).encode())

    def _export_parts(self, folder: Path) -> list[tuple[str, str]]:
        core = copy.deepcopy(self.model).merge_and_unload() if self.lora is not None else self.core
        core.save_pretrained(folder)
        self._save_tokenizer(folder)
        write_json(
            folder / "sentence_bert_config.json", {"max_seq_length": self.max_tokens, "do_lower_case": False}
        )
        write_pooling(folder / "1_Pooling", self.dim, "lasttoken" if self.pooling == "last" else self.pooling)
        write_json(folder / "2_Normalize" / CONFIG_FILE, {})
        return [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]


def _tight(lengths: list[int], waste: float = 0.1, enough: int = 4096) -> list[tuple[int, int]]:
    """Runs of sorted lengths; a run ends where padding would pass a share of its tokens.

    Runs of few tokens go on regardless: a product of few rows costs as much as one of more.
    """
    runs, low, real = [], 0, 0
    for high, length in enumerate(lengths):
        if real >= enough and length * (high + 1 - low) > (1 + waste) * (real + length):
            runs.append((low, high))
            low, real = high, 0
        real += length
    return [*runs, (low, len(lengths))]
