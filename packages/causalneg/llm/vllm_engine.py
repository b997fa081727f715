"""vLLM in this process: thousands of answers under way at once, each written by its schema.

Calls are handed to the engine one by one while it works, so the second call of a pair joins the running batch
as soon as the first is answered, while its prefix is still cached. Answers are held to compact JSON of their
schema; since every text in the schema has a longest length, every answer ends.

Data parallel means several engines, each in a process and on devices of its own. vLLM itself is imported only
when an engine is made.

Over 400 lines: the engine, and the processes that hold several.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from causalneg.llm.answers import Attempts
from causalneg.llm.chat import ChatBackend, ChatFailure, ChatRequest, Outcome
from causalneg.llm.weights import local_identity
from common.errors import BackendError, ConfigError

_MISSING = (
    "backend vllm: vLLM is not installed here; on Linux with an NVIDIA GPU install 'causalneg-lain[gpu]', "
    "elsewhere take the backend openai with a server, or transformers"
)


class VLLMBackend(ChatBackend):
    """The offline engine; see :class:`causalneg.llm.chat.ChatBackend`.

    Args:
        model: Name or folder of a model with a chat template.
        adapter: Folder of a LoRA adapter; None for none.
        tensor_parallel: Devices that one copy of the model is spread over.
        data_parallel: Copies of the model.
        context: Tokens of prompt and answer together; None takes the model's.
        sequences: Answers that an engine writes at a time; None leaves it to vLLM.
        seeds: Whether each request has a seed of its own, so that an answer can be had again. It costs speed:
            vLLM then samples without its fastest kernels.
        attempts: How often a request with a bad answer is asked.
        template: Further arguments of the chat template, such as ``{"enable_thinking": False}``.
        engine: Further arguments of ``vllm.LLM``, such as ``{"gpu_memory_utilization": 0.9}``.

    Raises:
        ConfigError: A value is out of range.
        BackendError: vLLM is not installed, or cannot serve this model on these devices.
    """

    name = "vllm"

    def __init__(
        self,
        *,
        model: str = "",
        adapter: str | None = None,
        tensor_parallel: Annotated[int, Ge(1)] = 1,
        data_parallel: Annotated[int, Ge(1)] = 1,
        context: Annotated[int, Ge(1)] | None = None,
        sequences: Annotated[int, Ge(1)] | None = None,
        seeds: bool = True,
        attempts: Annotated[int, Ge(1)] = 3,
        template: Mapping[str, Any] | None = None,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        numbers = {
            "tensor_parallel": tensor_parallel,
            "data_parallel": data_parallel,
            "context": context,
            "sequences": sequences,
            "attempts": attempts,
        }
        found = [
            f"{name}: must be at least 1, got {value}"
            for name, value in numbers.items()
            if value is not None and value < 1
        ]
        if not model:
            found.append("model: name a model, or give the folder of one")
        ConfigError.raise_if(found)
        self.model = model if adapter is None else f"{model}+{Path(adapter).name}"
        template, engine = dict(template or {}), dict(engine or {})
        folders = [model, *([adapter] if adapter else [])]
        self._identity = local_identity(
            self.name, self.model, folders, template=template, engine=engine, seeds=seeds
        )
        options: dict[str, Any] = {
            "model": model,
            "adapter": adapter,
            "tensor_parallel": tensor_parallel,
            "context": context,
            "sequences": sequences,
            "seeds": seeds,
            "attempts": attempts,
            "template": template,
            "engine": engine,
        }
        self._engine = _Engine(**options) if data_parallel == 1 else _Engines(data_parallel, options)

    @property
    def identity(self) -> dict[str, str]:
        """Model, weights, and the arguments of engine and chat template; see the base class."""
        return self._identity

    @property
    def context(self) -> int | None:
        """Tokens that prompt and answer may have together."""
        return self._engine.context

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return self._engine.count(text)

    def stream(self, take: Callable[[], ChatRequest | None]) -> Iterator[Outcome]:
        """Answer requests as they come; see the protocol."""
        return self._engine.stream(take)

    def close(self) -> None:
        """Stop the engine; see the protocol."""
        self._engine.close()


class _Engine:
    """One engine, its front in this process."""

    def __init__(
        self,
        *,
        model: str,
        adapter: str | None,
        tensor_parallel: int,
        context: int | None,
        sequences: int | None,
        seeds: bool,
        attempts: int,
        template: dict[str, Any],
        engine: dict[str, Any],
    ) -> None:
        self._seeds, self._attempts, self._template = seeds, attempts, template
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            import vllm
            from vllm.lora.request import LoRARequest
            from vllm.platforms import current_platform
            from vllm.sampling_params import StructuredOutputsParams
        except ImportError as error:
            missing = error.name is not None and error.name.split(".")[0] == "vllm"
            raise BackendError(
                _MISSING if missing else f"backend vllm: cannot be used here ({error})"
            ) from None
        self._sampling, self._structured = vllm.SamplingParams, StructuredOutputsParams
        arguments: dict[str, Any] = {
            "model": model,
            "tensor_parallel_size": tensor_parallel,
            "enable_prefix_caching": True,
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        }
        if context is not None:
            arguments["max_model_len"] = context
        if sequences is not None:
            arguments["max_num_seqs"] = sequences
        if seeds and current_platform.is_cpu():
            # A prompt that is read in two steps makes vLLM turn a request's generator back, which a generator
            # on a CPU cannot do: the engine would die.
            arguments["enable_chunked_prefill"] = False
        self._adapter = None
        if adapter is not None:
            arguments |= {"enable_lora": True, "max_lora_rank": _rank(Path(adapter))}
            self._adapter = LoRARequest("adapter", 1, adapter)
        try:
            self._llm = vllm.LLM(**(arguments | engine))
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise BackendError(f"backend vllm: {model}: {_first_line(error)}") from None
        self.context: int | None = int(self._llm.llm_engine.model_config.max_model_len)
        scheduler = self._llm.llm_engine.vllm_config.scheduler_config
        self._sequences = int(scheduler.max_num_seqs)
        self._tokenizer = self._llm.get_tokenizer()

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def stream(self, take: Callable[[], ChatRequest | None]) -> Iterator[Outcome]:
        """Keep the engine supplied with half as many again as it writes at a time."""
        under_way: dict[str, tuple[str, Attempts]] = {}
        most = self._sequences + max(1, self._sequences // 2)
        engine = self._llm.llm_engine
        try:
            while True:
                while len(under_way) < most:
                    request = take()
                    if request is None:
                        break
                    refused = self._add(Attempts(request, self._attempts), under_way)
                    if refused is not None:
                        yield refused
                if not under_way:
                    return
                if not engine.has_unfinished_requests():
                    raise RuntimeError(f"it lost {len(under_way)} requests")
                for output in engine.step():
                    number = _number(output.request_id)
                    if not output.finished or number not in under_way:
                        continue
                    _, asked = under_way.pop(number)
                    answer = output.outputs[0]
                    outcome = asked.settle(
                        answer.text,
                        cut=answer.finish_reason == "length",
                        prompt_tokens=len(output.prompt_token_ids or ()),
                        completion_tokens=len(answer.token_ids),
                    )
                    if outcome is None:
                        outcome = self._add(asked, under_way)
                    if outcome is not None:
                        yield outcome
        except RuntimeError as error:
            # The engine's own process died: out of memory, or killed.
            raise BackendError(
                f"backend vllm: the engine stopped ({_first_line(error)}); "
                "what is finished is kept, run the same again"
            ) from None
        finally:
            if under_way:
                engine.abort_request([name for name, _ in under_way.values()], internal=True)

    def _add(self, asked: Attempts, under_way: dict[str, tuple[str, Attempts]]) -> Outcome | None:
        """Hand a request to the engine; an outcome if it does not take it."""
        request = asked.request
        parameters = self._sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed if self._seeds else None,
            max_tokens=request.max_tokens,
            structured_outputs=self._structured(json=dict(request.schema)),
        )
        try:
            (name,) = self._llm.enqueue_chat(
                [[{"role": m.role, "content": m.content} for m in request.messages]],
                parameters,
                lora_request=self._adapter,
                chat_template_kwargs=self._template or None,
                use_tqdm=False,
            )
        except ValueError as error:
            return ChatFailure(
                request.key,
                "context too long",
                _first_line(error),
                asked.prompt_tokens,
                asked.completion_tokens,
                asked.done + 1,
            )
        under_way[_number(name)] = (name, asked)
        return None

    def close(self) -> None:
        del self._llm


class _Engines:
    """Several engines, each in a process and on devices of its own; requests go where the fewest wait."""

    def __init__(self, copies: int, options: dict[str, Any]) -> None:
        size = options["tensor_parallel"]
        visible = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
        spawn = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(copies):
            numbers = range(rank * size, (rank + 1) * size)
            devices = ",".join(visible[n] if n < len(visible) else str(n) for n in numbers)
            here, there = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(there, options, devices), daemon=False)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        try:
            ready = [self._receive(pipe) for pipe in self._pipes]
        except BaseException:
            self.close()
            raise
        self.context: int | None = ready[0][1]
        self._sequences: int = ready[0][2]
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(options["model"])

    def _receive(self, pipe: Connection) -> Any:
        """A message of an engine.

        Raises:
            BackendError: It has stopped, or says that it can't.
        """
        try:
            message = pipe.recv()
        except EOFError:
            raise BackendError(
                "backend vllm: an engine stopped; what is finished is kept, run the same again"
            ) from None
        if isinstance(message, BackendError):
            raise message
        return message

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def stream(self, take: Callable[[], ChatRequest | None]) -> Iterator[Outcome]:
        waiting = dict.fromkeys(range(len(self._pipes)), 0)
        try:
            yield from self._share_out(take, waiting)
        finally:
            # Nothing of this stream may come out of the next one.
            for number, count in waiting.items():
                for _ in range(count):
                    self._receive(self._pipes[number])

    def _share_out(
        self, take: Callable[[], ChatRequest | None], waiting: dict[int, int]
    ) -> Iterator[Outcome]:
        most = 2 * self._sequences
        while True:
            while min(waiting.values()) < most:
                request = take()
                if request is None:
                    break
                least = min(waiting, key=lambda n: waiting[n])
                try:
                    self._pipes[least].send(request)
                except OSError:
                    self._receive(self._pipes[least])
                    raise
                waiting[least] += 1
            if not any(waiting.values()):
                return
            busy = {id(pipe): number for number, pipe in enumerate(self._pipes) if waiting[number]}
            for ready in wait([self._pipes[number] for number in busy.values()]):
                number = busy[id(ready)]
                outcome: Outcome = self._receive(self._pipes[number])
                waiting[number] -= 1
                yield outcome

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=30)
            if process.is_alive():
                process.terminate()
                process.join()


def _serve(pipe: Connection, options: dict[str, Any], devices: str) -> None:
    """An engine in its own process: requests in, outcomes out, until the pipe is closed."""
    os.environ["CUDA_VISIBLE_DEVICES"] = devices
    try:
        engine = _Engine(**options)
    except BackendError as error:
        pipe.send(error)
        return
    pipe.send(("ready", engine.context, engine._sequences))
    under_way = 0

    def take() -> ChatRequest | None:
        nonlocal under_way
        # With nothing under way there is nothing to do but wait; the end of the pipe ends the waiting.
        if under_way and not pipe.poll():
            return None
        request: ChatRequest = pipe.recv()
        under_way += 1
        return request

    try:
        for outcome in engine.stream(take):
            pipe.send(outcome)
            under_way -= 1
    except BackendError as error:
        pipe.send(error)
    except (EOFError, OSError):
        pass  # whoever asked is gone
    finally:
        engine.close()


def _number(name: str) -> str:
    """Number of a request; what vLLM puts behind it differs between what it takes and what it gives."""
    return name.partition("-")[0]


def _rank(adapter: Path) -> int:
    """Rank of a LoRA adapter, by its own config; vLLM wants to know it beforehand."""
    try:
        rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    except (OSError, ValueError, KeyError):
        raise BackendError(f"adapter {adapter}: has no adapter_config.json with a rank 'r'") from None
    return max(8, 1 << (int(rank) - 1).bit_length())


def _first_line(error: BaseException) -> str:
    lines: Sequence[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
