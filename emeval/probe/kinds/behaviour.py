"""Behaviour probes: does a trained behaviour appear, on its own topic or where nothing asked for it?

`questions: topic` asks the held-out questions of the behaviour's topic; a list asks those. The score is the appearance
rate, the share of replies in which the behaviour's detectors fire.
"""

from __future__ import annotations

from emeval.data.behaviours import Behaviour
from emeval.data.domains import load_domain
from emeval.data.root import DataRoot
from emeval.errors import InputError
from emeval.probe.spec import ProbeSpec
from emeval.types import Message, Question, Split


def questions(spec: ProbeSpec, root: DataRoot, behaviour: Behaviour, split: Split) -> list[Question]:
    """The probe's questions of one split, in the file's order.

    Raises:
        InputError: If there are none.
    """
    if spec.questions == "topic":
        found = [
            Question(id=i.id, probe=spec.name, split=i.split, messages=_user(i.question), where=i.where)
            for i in load_domain(root, behaviour.topic)
        ]
    else:
        found = [
            Question(
                id=q.id,
                probe=spec.name,
                split=q.split,
                messages=q.messages or _user(q.question or ""),
                category=q.category,
                where=f"{spec.where} ({q.id})",
            )
            for q in spec.questions
        ]
    chosen = [q for q in found if q.split == split]
    if not chosen:
        raise InputError(
            f"probe '{spec.name}' has no {split} question", where=spec.where, hint="Choose another --split"
        )
    return chosen


def _user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)
