"""A small model in this process, on CPU or GPU, through transformers: no server and no engine needed.

Texts are padded on the left and written together. Each has a source of draws of its own, so an answer does
not depend on what else is in the batch, but for rounding. There are no structured outputs: answers are parsed
with care and asked for again when they cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList

from causalneg.llm.answers import Attempts
from causalneg.llm.chat import ChatBackend, ChatFailure, ChatRequest, Outcome
from causalneg.llm.weights import local_identity
from common.errors import BackendError, ConfigError


class SeededSampling(LogitsProcessor):
    """Samples each text with its own seed, by greedy search over logits with Gumbel noise.

    The largest of ``logits / temperature + noise`` is a draw from their softmax. Rows at temperature 0 get no
    noise. What lies outside the likeliest ``top_p`` of the probability is never taken.

    Args:
        requests: The texts of the batch, in order.
    """

    def __init__(self, requests: Sequence[ChatRequest]) -> None:
        self._requests = requests
        self._draws = [torch.Generator().manual_seed(request.seed) for request in requests]

    def __call__(
        self, input_ids: Int[Tensor, "texts tokens"], scores: Float[Tensor, "texts vocabulary"]
    ) -> Float[Tensor, "texts vocabulary"]:
        """The logits, so changed that the largest one is the draw."""
        changed = scores.float().clone()
        for row, (request, draws) in enumerate(zip(self._requests, self._draws, strict=True)):
            if request.temperature <= 0:
                continue
            logits = changed[row] / request.temperature
            if request.top_p < 1:
                ordered, places = logits.sort(descending=True)
                before = ordered.softmax(0).cumsum(0) - ordered.softmax(0)
                logits = logits.index_fill(0, places[before >= request.top_p], -torch.inf)
            # In double precision and never 0, so that the noise is finite.
            uniform = torch.rand(len(logits), generator=draws, dtype=torch.float64).clamp_min(1e-300)
            changed[row] = logits - torch.log(-torch.log(uniform)).float().to(logits.device)
        return changed


class TransformersBackend(ChatBackend):
    """A causal language model by transformers; see :class:`causalneg.llm.chat.ChatBackend`.

    Args:
        model: Name or folder of a model with a chat template.
        adapter: Folder of a LoRA adapter; None for none.
        batch: Texts at a time.
        attempts: How often a request with a bad answer is asked.
        context: Tokens of prompt and answer together; None takes the model's.
        device: Where it runs; by default a GPU if there is one.
        dtype: Type of the weights, such as ``"bfloat16"``; None takes the model's.
        template: Further arguments of the chat template, such as ``{"enable_thinking": False}``.

    Raises:
        ConfigError: A value is out of range.
        BackendError: There is no such model, or it has no chat template.
    """

    name = "transformers"

    def __init__(
        self,
        *,
        model: str = "",
        adapter: str | None = None,
        batch: Annotated[int, Ge(1)] = 8,
        attempts: Annotated[int, Ge(1)] = 3,
        context: Annotated[int, Ge(1)] | None = None,
        device: str | None = None,
        dtype: str | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> None:
        found = [
            f"{name}: must be at least 1, got {value}"
            for name, value in (("batch", batch), ("attempts", attempts), ("context", context))
            if value is not None and value < 1
        ]
        if not model:
            found.append("model: name a model, or give the folder of one")
        ConfigError.raise_if(found)
        self.model = model if adapter is None else f"{model}+{Path(adapter).name}"
        folders = [model, *([adapter] if adapter else [])]
        self._identity = local_identity(
            self.name, self.model, folders, dtype=dtype, template=dict(template or {})
        )
        self._batch, self._attempts, self._template = batch, attempts, dict(template or {})
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
            lm: Any = AutoModelForCausalLM
            lm = lm.from_pretrained(model, dtype=dtype or "auto")
            if adapter is not None:
                lm.load_adapter(adapter)
        except (OSError, ValueError, ImportError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BackendError(f"model '{self.model}': cannot be loaded ({first})") from None
        if not self._tokenizer.chat_template:
            raise BackendError(f"model '{model}': has no chat template; use one that is made for chat")
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._lm = lm.eval().to(self._device)
        own = getattr(self._lm.config, "max_position_embeddings", None)
        self._context = context or own

    @property
    def context(self) -> int | None:
        """Tokens that prompt and answer may have together."""
        return self._context

    @property
    def identity(self) -> dict[str, str]:
        """Model, weights, their type and the chat template's arguments; see the base class."""
        return self._identity

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def stream(self, take: Callable[[], ChatRequest | None]) -> Iterator[Outcome]:
        """Answer requests as they come, a batch at a time; see the protocol."""
        again: list[Attempts] = []
        while True:
            batch = again[: self._batch]
            again = again[self._batch :]
            while len(batch) < self._batch:
                request = take()
                if request is None:
                    break
                batch.append(Attempts(request, self._attempts))
            if not batch:
                return
            prompts = [self._prompt(a.request) for a in batch]
            fitting = []
            for asked, prompt in zip(batch, prompts, strict=True):
                if self._context is not None and len(prompt) + 1 > self._context:
                    yield ChatFailure(
                        asked.request.key, "context too long", f"{len(prompt)} tokens of {self._context}"
                    )
                else:
                    fitting.append((asked, prompt))
            for (asked, prompt), (text, cut, written) in zip(fitting, self._write(fitting), strict=True):
                outcome = asked.settle(text, cut=cut, prompt_tokens=len(prompt), completion_tokens=written)
                if outcome is None:
                    again.append(asked)
                else:
                    yield outcome

    def _prompt(self, request: ChatRequest) -> list[int]:
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
        text = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **self._template
        )
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _write(self, batch: Sequence[tuple[Attempts, list[int]]]) -> list[tuple[str, bool, int]]:
        """Texts of a batch, whether each was cut, and how many tokens each has."""
        if not batch:
            return []
        inputs = self._tokenizer.pad({"input_ids": [prompt for _, prompt in batch]}, return_tensors="pt")
        width = inputs["input_ids"].shape[1]
        requests = [asked.request for asked, _ in batch]
        most = max(request.max_tokens for request in requests)
        if self._context is not None:
            most = max(1, min(most, self._context - width))
        try:
            with torch.inference_mode():
                written = self._lm.generate(
                    **inputs.to(self._device),
                    max_new_tokens=most,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    logits_processor=LogitsProcessorList([SeededSampling(requests)]),
                    pad_token_id=self._tokenizer.pad_token_id,
                )
        except torch.OutOfMemoryError:
            raise BackendError(
                f"model '{self.model}': {self._device} has no memory left for {len(batch)} texts at a time; "
                "what is finished is kept, run the same again with a smaller backend.batch"
            ) from None
        ends = self._lm.generation_config.eos_token_id
        stops = set(ends) if isinstance(ends, list) else {ends}
        stops.add(self._tokenizer.eos_token_id)
        found = []
        for request, row in zip(requests, written[:, width:].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in stops), None)
            cut = end is None or end >= request.max_tokens
            tokens = row[: request.max_tokens] if cut else row[:end]
            text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
            found.append((text, cut, len(tokens)))
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._lm = None
