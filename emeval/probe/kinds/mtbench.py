"""MT-Bench probes: is the model as useful as before? Questions of two turns, each reply rated from 1 to 10 by a judge.

The second turn is asked when the first is answered, in the same conversation; the judge sees both, and a reference
where there is one (Zheng et al., 2023: single-answer grading).
"""

from __future__ import annotations

from emeval.data.root import DataRoot
from emeval.data.settings import Setting
from emeval.probe.kinds.behaviour import chosen
from emeval.probe.spec import ProbeSpec
from emeval.types import Question, Split

MAX_NEW_TOKENS = 1024


def questions(spec: ProbeSpec, root: DataRoot, setting: Setting, split: Split) -> list[Question]:
    """The probe's questions of one split, in the file's order. InputError if there are none."""
    return chosen(spec, None, split)
