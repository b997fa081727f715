"""Language models behind one interface: chats, schemas, budgets. Nothing here knows what a negative is."""

from __future__ import annotations

from causalneg.llm.chat import ChatBackend
from common.config import Registry

BACKENDS: Registry[ChatBackend] = Registry("backend", given={"report"})
"""Where a language model runs, by name. Each is imported when it is first asked for."""

BACKENDS.add("vllm", "causalneg.llm.vllm_engine:VLLMBackend")
BACKENDS.add("openai", "causalneg.llm.openai_server:OpenAIBackend")
BACKENDS.add("transformers", "causalneg.llm.transformers_local:TransformersBackend")
