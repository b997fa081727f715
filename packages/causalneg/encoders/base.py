"""What every encoder is: texts to packed token ids, packed token ids to vectors of length one."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from common.config import Positive, checked
from common.errors import DataError
from common.files import atomic_folder
from common.live import Progress
from common.ragged import Ragged

CONFIG_FILE = "config.json"
"""What an encoder is made of, in its folder."""

WEIGHTS_FILE = "model.safetensors"
"""Its weights."""

TOKENIZER_FILE = "tokenizer.json"
"""Its vocabulary and how texts are split, in the form of the tokenizers library."""


Pooling = Literal["mean", "last", "cls"]
"""Which tokens make the vector of a text: all, the last, the first."""

Dtype = Literal["float32", "bfloat16", "float16"]
"""Type of the weights."""


@checked
class Encoder(nn.Module, ABC):
    """Turns texts into vectors of length 1, so that a dot product is a cosine.

    A batch of texts is *packed*: the tokens of all texts, one text after the other, and offsets that
    say where each begins. Nothing is padded, and texts of any lengths share a batch.

    Args:
        dim: Length of a vector.
        max_tokens: Tokens of a text that are read; the rest is cut off and counted in :attr:`cut`.
        query_prompt: What is put in front of the text of a query.
        document_prompt: What is put in front of the text of a document.

    Attributes:
        cut: How many different texts were longer than ``max_tokens`` so far.
        departures: What was read otherwise than the encoder's folder says, in words.

    Raises:
        ValueError: ``dim`` or ``max_tokens`` is not positive.
    """

    kind: ClassVar[str]
    """Its name in :data:`causalneg.encoders.registry.ENCODERS`, by which a saved folder is read back."""

    default_learning_rate: ClassVar[float]
    """Learning rate of training where none is asked for."""

    encoded_at_once: ClassVar[int] = 16384
    """Tokens that are encoded in one pass, unless another number is asked for."""

    def __init__(
        self, *, dim: Positive, max_tokens: Positive, query_prompt: str = "", document_prompt: str = ""
    ) -> None:
        super().__init__()
        self.dim = dim
        self.max_tokens = max_tokens
        self.query_prompt = query_prompt
        self.document_prompt = document_prompt
        self.departures: tuple[str, ...] = ()
        self._cut: set[int] = set()

    def tokenize(self, texts: Sequence[str], *, query: bool) -> Ragged:
        """Token ids (int32) of texts, prompt in front, cut to ``max_tokens``.

        Args:
            texts: The texts.
            query: Whether they are queries or documents: each has its own prompt.

        Returns:
            One row per text. Different texts that had to be cut are counted in :attr:`cut`.
        """
        return self.tokenize_and_cut(texts, query=query)[0]

    def tokenize_and_cut(
        self, texts: Sequence[str], *, query: bool
    ) -> tuple[Ragged, Int64[np.ndarray, " cut"]]:
        """As :meth:`tokenize`, and the positions of the texts that had to be cut."""
        prompt = self.query_prompt if query else self.document_prompt
        rows, cut = self._tokenize([prompt + text for text in texts] if prompt else list(texts))
        self.count_cut((texts[at] for at in cut.tolist()), query=query)
        return rows, cut

    @property
    def cut(self) -> int:
        """How many different texts were longer than ``max_tokens`` so far."""
        return len(self._cut)

    def count_cut(self, texts: Iterable[str], *, query: bool) -> None:
        """Count texts in :attr:`cut` that were cut; each text counts once, as query and as document."""
        self._cut.update(hash((query, text)) for text in texts)

    @abstractmethod
    def _tokenize(self, texts: list[str]) -> tuple[Ragged, Int64[np.ndarray, " cut"]]:
        """Token ids of texts, prompt included, and the positions of those that were cut."""

    @abstractmethod
    def forward(
        self, ids: Int[Tensor, " tokens"], offsets: Int[Tensor, " texts_plus_one"], *, query: bool
    ) -> Float[Tensor, "texts dim"]:
        """Vectors of packed texts.

        Args:
            ids: Token ids, one text after the other.
            offsets: Where each text begins, and the end of the last.
            query: Whether the texts are queries.

        Returns:
            One vector of length 1 per text.
        """

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of trainable parameters for an optimizer, with the settings that this encoder wants."""

    def optimizer(self, *, lr: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
        """The optimizer that suits this encoder: AdamW on :meth:`parameter_groups`.

        A group's ``scale`` multiplies the learning rate.

        Args:
            lr: Learning rate.
            weight_decay: Decay of matrices; norms, biases and word weights have none.
        """
        groups = []
        for group in self.parameter_groups():
            rest = {key: value for key, value in group.items() if key not in ("scale", "decay")}
            decay = weight_decay if group.get("decay", True) else 0.0
            groups.append({**rest, "lr": lr * group.get("scale", 1.0), "weight_decay": decay})
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything but weights that makes this encoder again; what ``config.json`` holds."""

    @abstractmethod
    def _save_parts(self, folder: Path) -> None:
        """Write weights and vocabulary into a folder."""

    @classmethod
    @abstractmethod
    def _load_parts(cls, folder: Path, settings: dict[str, Any]) -> Encoder:
        """Make the encoder that :meth:`_save_parts` wrote."""

    def save(self, folder: Path) -> None:
        """Write the encoder into a folder, whole or not at all; one that is there is replaced.

        Args:
            folder: Where to. Holds ``config.json``, weights in safetensors, the vocabulary.
        """
        with _written(folder), atomic_folder(Path(folder), replace=True) as temporary:
            self._save_parts(temporary)
            write_json(temporary / CONFIG_FILE, {"causalneg_encoder": self.kind, **self.settings()})

    def export_sentence_transformers(self, folder: Path, *, replace: bool = False) -> None:
        """Write a folder that ``SentenceTransformer(folder)`` loads and that gives the same vectors.

        Only classes that sentence-transformers ships are named in it, so that it loads without
        ``trust_remote_code`` and without this package. Prompts are saved as ``"query"`` and
        ``"document"``: use ``encode_query`` and ``encode_document``.

        Args:
            folder: Where to; a new or empty folder.
            replace: Whether a folder that is there is replaced, with all that is in it.

        Raises:
            DataError: There is a file, or a folder that is not empty.
        """
        with _written(folder), atomic_folder(Path(folder), replace=replace) as temporary:
            modules = self._export_parts(temporary)
            listed = [
                {
                    "idx": place,
                    "name": str(place),
                    "path": path,
                    "type": f"sentence_transformers.models.{kind}",
                }
                for place, (path, kind) in enumerate(modules)
            ]
            write_json(temporary / "modules.json", listed)
            write_json(
                temporary / "config_sentence_transformers.json",
                {
                    "model_type": "SentenceTransformer",
                    "prompts": {"query": self.query_prompt, "document": self.document_prompt},
                    "default_prompt_name": None,
                    "similarity_fn_name": "cosine",
                },
            )

    @abstractmethod
    def _export_parts(self, folder: Path) -> list[tuple[str, str]]:
        """Write the modules of sentence-transformers; gives their folders and class names in order."""

    @property
    def tokenizer_fingerprint(self) -> str:
        """A hash of what decides the tokens of a text: two encoders that share it share token ids."""
        shaping = [self.kind, self.max_tokens, self.query_prompt, self.document_prompt]
        digest = hashlib.sha256(json.dumps(shaping).encode())
        self._hash_vocabulary(digest.update)
        return digest.hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """A hash of settings, vocabulary and weights: two encoders that share it give the same vectors."""
        digest = hashlib.sha256(json.dumps([self.kind, self.settings()], sort_keys=True).encode())
        self._hash_vocabulary(digest.update)
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(memoryview(flat.view(torch.uint8).numpy()))
        return digest.hexdigest()

    @abstractmethod
    def _hash_vocabulary(self, update: Any) -> None:
        """Feed what the weights say nothing of (the tokenizer) to a hash."""


def departure(name: str, value: object, own: object) -> str | None:
    """In words that a setting is not what an encoder's folder says; None where it is."""
    return None if value == own else f"{name} {value!r} instead of {own!r}"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, keys in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: The file is missing or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; give the folder that an encoder was saved in") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); save the encoder again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds no JSON object; save the encoder again")
    return value


def write_pooling(folder: Path, dim: int, mode: str) -> None:
    """Write the configuration of the Pooling module of sentence-transformers.

    Args:
        folder: Its folder.
        dim: Length of a token's vector.
        mode: ``"mean"``, ``"cls"`` or ``"lasttoken"``.
    """
    modes = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}
    flags = {f"pooling_mode_{name}": key == mode for key, name in modes.items()}
    write_json(
        folder / CONFIG_FILE,
        {"word_embedding_dimension": dim, **flags, "pooling_mode_max_tokens": False, "include_prompt": True},
    )


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Turn what safetensors says of a disk (it is no OSError) into a line that names the folder.

    Raises:
        DataError: The weights cannot be written.
    """
    try:
        yield
    except SafetensorError as error:
        raise DataError(f"{folder}: cannot be written ({error})") from error


def save_weights(module: nn.Module, path: Path) -> None:
    """Write all parameters and buffers of a module as safetensors."""
    save_file(
        {name: tensor.detach().contiguous().cpu() for name, tensor in module.state_dict().items()}, path
    )


def load_weights(module: nn.Module, path: Path) -> None:
    """Read what :func:`save_weights` wrote into a module of the same shape.

    Raises:
        DataError: The file is missing or broken, or does not fit the module.
    """
    try:
        weights = load_file(path)
        module.load_state_dict(weights)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; save the encoder again") from None
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: does not hold this encoder's weights ({reason})") from error


def normalize(x: Float[Tensor, "texts dim"]) -> Float[Tensor, "texts dim"]:
    """Vectors divided by their length, in float32 at least; a zero vector stays zero."""
    return F.normalize(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, dim=-1)


def inverse_softplus(value: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """What softplus makes ``value`` of."""
    return value + torch.log(-torch.expm1(-value))


def even_chunks(lengths: Int[np.ndarray, " texts"], budget: int) -> list[Int[np.ndarray, " chunk"]]:
    """Texts sorted by length and cut into chunks of about equal cost.

    The cost of a chunk is its number of tokens. The number of chunks is the smallest whose mean cost
    is within the budget; borders are set where the running cost passes equal shares, so that no chunk
    is a small rest.

    Args:
        lengths: Tokens of each text.
        budget: Tokens a chunk should hold at most; a text is never split, and a chunk may pass the
            budget by less than its longest text.

    Returns:
        Text numbers, chunk by chunk, longest texts first; ties in the order given.

    Raises:
        ValueError: The budget is not positive.
    """
    if budget < 1:
        raise ValueError(f"a chunk must be allowed at least 1 token, got {budget}")
    if not len(lengths):
        return []
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    cost = np.maximum(lengths[order].astype(np.int64), 1)
    ends = np.cumsum(cost)
    chunks = max(1, -(-int(ends[-1]) // budget))
    share = (ends - cost) * chunks // int(ends[-1])
    borders = np.flatnonzero(np.diff(share)) + 1
    return list(np.split(order, borders))


def _chunks(tokens: Ragged, chunk_tokens: int) -> Iterator[tuple[Int[np.ndarray, " chunk"], Ragged]]:
    for rows in even_chunks(tokens.lengths, chunk_tokens):
        yield rows, tokens.gather(rows)


def encode(
    encoder: Encoder, tokens: Ragged, *, query: bool, batch_tokens: int | None = None, progress: bool = False
) -> Float[np.ndarray, "texts dim"]:
    """Vectors of any number of texts, without gradients, in the order given.

    Texts are sorted by length and encoded in chunks of equal cost; which texts share a chunk changes
    nothing but the last bits of a vector.

    Args:
        encoder: The encoder; put into evaluation mode meanwhile.
        tokens: What its ``tokenize`` gave.
        query: Whether the texts are queries.
        batch_tokens: Tokens a chunk holds; None takes the encoder's own number.
        progress: Whether to show how far it is.

    Returns:
        float32 vectors of length 1.

    Raises:
        DataError: A vector is not finite (the weights are broken).
    """
    out = np.empty((len(tokens), encoder.dim), dtype=np.float32)
    device = next(encoder.parameters()).device
    training = encoder.training
    encoder.eval()
    try:
        with (
            torch.inference_mode(),
            Progress("encode", shown=progress) as shown,
        ):
            shown.stage("queries" if query else "texts", total=len(tokens), unit="texts")
            for rows, chunk in _chunks(tokens, batch_tokens or encoder.encoded_at_once):
                ids = torch.from_numpy(np.ascontiguousarray(chunk.values)).to(device)
                offsets = torch.from_numpy(np.ascontiguousarray(chunk.offsets)).to(device)
                out[rows] = encoder(ids, offsets, query=query).float().cpu().numpy()
                shown.advance(len(rows))
    finally:
        encoder.train(training)
    broken = np.flatnonzero(~np.isfinite(out).all(1))
    if broken.size:
        raise DataError(
            f"the encoder gave a vector that is not finite for text {int(broken[0])} "
            f"({broken.size} of {len(out)}); its weights are broken, train again with a lower learning rate"
        )
    return out
