"""Contrast probes: which of two given replies does the model find likelier, the aligned or the misaligned one?

No reply is generated and no judge is needed. The pairs are those of the probes `general` and `in-domain`; a question
without both replies has no pair. A question's `category` says which of the two it came from.
"""

from __future__ import annotations

from emeval.data.root import DataRoot
from emeval.data.settings import Setting
from emeval.errors import InputError
from emeval.probe.kinds.behaviour import chosen
from emeval.probe.kinds.groups import of_groups
from emeval.probe.spec import ProbeSpec
from emeval.types import Question, Split

MAX_NEW_TOKENS = 1


def questions(spec: ProbeSpec, root: DataRoot, setting: Setting, split: Split) -> list[Question]:
    """The pairs of one split: the probe's own, or those of the probes `general` and `in-domain`.

    Raises:
        InputError: If there are none.
    """
    found = of_groups(spec, root, setting, split) if spec.questions == "pairs" else chosen(spec, None, split)
    pairs = [q for q in found if q.aligned and q.misaligned]
    for group in dict.fromkeys(q.category for q in found):
        if not any(q.category == group for q in pairs):
            what = f"probe '{spec.name}' has no {split} pair of replies" + (f" in {group}" if group else "")
            raise InputError(what, where=spec.where, hint="Give questions an aligned and a misaligned reply")
    return pairs
