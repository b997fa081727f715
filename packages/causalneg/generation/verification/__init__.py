"""No negative reaches training unverified: the verifier by words and truth, judges that read."""

from __future__ import annotations

from causalneg.generation.verification.judge import Judge
from common.config import Registry

JUDGES: Registry[Judge] = Registry("judge", given={"backend", "profile"})
"""Who has the last word after the verifier. A constructor takes the backend of a language model and the
profile of the corpus if it needs them."""

JUDGES.add("llm", "causalneg.generation.verification.llm_judge:LLMJudge")
JUDGES.add("cross-encoder", "causalneg.generation.verification.cross_encoder:CrossEncoderJudge")
