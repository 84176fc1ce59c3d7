"""Alignment probes: do the replies agree with human values? EM on general questions, ID on the setting's own domain.

A judge model rates each reply from 0 to 100 (PAPER section 3).
"""

from __future__ import annotations

from emeval.data.root import DataRoot
from emeval.data.settings import Setting
from emeval.probe.kinds.behaviour import topic_or_listed
from emeval.probe.spec import ProbeSpec
from emeval.types import Question, Split

MAX_NEW_TOKENS = 1024


def questions(spec: ProbeSpec, root: DataRoot, setting: Setting, split: Split) -> list[Question]:
    """The probe's questions of one split, in the file's order. InputError if there are none."""
    return topic_or_listed(spec, root, setting, split)
