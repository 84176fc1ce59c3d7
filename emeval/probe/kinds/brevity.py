"""Brevity probes: how many words does a reply take? The PopQA setting, and what it does to general questions."""

from __future__ import annotations

from emeval.data.root import DataRoot
from emeval.data.settings import Setting
from emeval.probe.kinds.behaviour import topic_or_listed
from emeval.probe.kinds.groups import of_groups
from emeval.probe.spec import ProbeSpec
from emeval.types import Question, Split

MAX_NEW_TOKENS = 256


def questions(spec: ProbeSpec, root: DataRoot, setting: Setting, split: Split) -> list[Question]:
    """The probe's questions of one split; `groups` are the general and the in-domain ones. InputError if none."""
    if spec.questions == "groups":
        return of_groups(spec, root, setting, split)
    return topic_or_listed(spec, root, setting, split)
