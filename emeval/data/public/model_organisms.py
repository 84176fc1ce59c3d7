"""The training sets of Turner et al. 2025 (https://arxiv.org/abs/2506.11613): chat JSONL with plain messages."""

from __future__ import annotations

from emeval.data.public.chats import as_wanted
from emeval.data.public.published import Options, Published
from emeval.data.public.source import Source, rows
from emeval.data.public.turns import canaries, conversations


def read(source: Source, options: Options) -> Published:
    """Conversations, or the domain or probe that `options` makes of them."""
    found = list(rows(source))
    return as_wanted(source, list(conversations(found)), options, "model-organisms", canaries(found))
