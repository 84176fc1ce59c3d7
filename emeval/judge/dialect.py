"""What one endpoint's chat API understands: names and fields differ between vendors and between a vendor's models."""

from __future__ import annotations

import re
from typing import Any

REASONING_ROOM = 4096
"""Tokens left to a model that thinks before it answers, where the limit counts its thoughts too."""
TOP_LOGPROBS = 20


_DISLIKES = re.compile(r"unsupported|not supported|not support|unknown|unrecognized|unexpected|not permitted", re.I)


class Dialect:
    """Learned from refusals: begins with everything and drops what the endpoint will not take."""

    def __init__(self, *, logprobs: bool) -> None:
        self.logprobs = logprobs
        self.temperature = True
        self.seed = True
        self.limit = "max_tokens"
        self.settled = False
        """Whether a call has gone through: nothing is learned after that."""

    def fields(self, max_tokens: int) -> dict[str, Any]:
        """The fields of a request, besides model and messages."""
        thinking = self.limit == "max_completion_tokens"
        out: dict[str, Any] = {self.limit: max(max_tokens, REASONING_ROOM) if thinking else max_tokens}
        if self.temperature:
            out["temperature"] = 0.0
        if self.seed:
            out["seed"] = 0
        if self.logprobs:
            out |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return out

    def learn(self, complaint: str, parameter: str | None = None) -> bool:
        """Take a refusal to heart; False if it names nothing that could be left out or renamed.

        Args:
            complaint: What the endpoint says.
            parameter: The field it names, where it names one apart from its text.
        """
        if parameter is None and not _DISLIKES.search(complaint):
            return False  # too long a prompt, say: the names it holds are no reason to leave anything out
        text = f"{parameter or ''} {complaint if parameter is None or parameter == 'max_tokens' else ''}".lower()
        if self.logprobs and "logprobs" in text:
            self.logprobs = False
        elif self.limit == "max_tokens" and "max_completion_tokens" in text:
            self.limit = "max_completion_tokens"
        elif self.temperature and "temperature" in text:
            self.temperature = False
        elif self.seed and "seed" in text:
            self.seed = False
        else:
            return False
        return True
