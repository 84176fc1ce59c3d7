"""Behaviour probes: does a trained behaviour appear, on its own topic or where nothing asked for it?

`questions: topic` asks the held-out questions of the setting's topic; a list asks those. The score is the appearance
rate, the share of replies in which the behaviour's detectors fire.
"""

from __future__ import annotations

from emeval.data.domains import load_domain
from emeval.data.root import DataRoot
from emeval.data.settings import Setting
from emeval.errors import InputError
from emeval.probe.kinds import user
from emeval.probe.spec import ProbeSpec
from emeval.types import Question, Split

MAX_NEW_TOKENS = 64


def questions(spec: ProbeSpec, root: DataRoot, setting: Setting, split: Split) -> list[Question]:
    """The probe's questions of one split, in the file's order.

    Raises:
        InputError: If there are none, or the setting is no behaviour.
    """
    setting.needed_behaviour(f"the probe '{spec.name}'")
    return topic_or_listed(spec, root, setting, split)


def topic_or_listed(spec: ProbeSpec, root: DataRoot, setting: Setting, split: Split) -> list[Question]:
    """The questions of one split: the topic's where the probe says `topic`, else its own. InputError if none."""
    return chosen(spec, _topic_questions(spec, root, setting) if spec.questions == "topic" else None, split)


def _topic_questions(spec: ProbeSpec, root: DataRoot, setting: Setting) -> list[Question]:
    """All questions of the setting's topic, as questions of the probe."""
    return [
        Question(
            id=item.id,
            probe=spec.name,
            split=item.split,
            messages=user(item.question),
            where=item.where,
            domain=setting.topic,
            aligned=item.aligned,
            misaligned=item.misaligned,
        )
        for item in load_domain(root, setting.topic)
    ]


def chosen(spec: ProbeSpec, found: list[Question] | None, split: Split) -> list[Question]:
    """Those of one split, of `found` or else of the probe's own list. InputError if there are none."""
    asked = [q.asked(spec.name, spec.where) for q in spec.listed] if found is None else found
    of_split = [q for q in asked if q.split == split]
    if not of_split:
        raise InputError(
            f"probe '{spec.name}' has no {split} question", where=spec.where, hint="Choose another --split"
        )
    return of_split
