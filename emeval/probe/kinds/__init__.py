"""Probe kinds: what a question set is for, found by the `kind:` of its YAML file.

A kind is a module with `questions(spec, root, setting, split)`, which yields what to ask, and `MAX_NEW_TOKENS`, how
long a reply may get where neither the command nor the setting says. How its replies are judged stands in
`judge/panel.py`, what is made of the judgements in `score/measures.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from emeval.types import Message, Question, Split

if TYPE_CHECKING:
    from emeval.data.root import DataRoot
    from emeval.data.settings import Setting
    from emeval.probe.spec import ProbeSpec

KINDS = {
    "behaviour": "emeval.probe.kinds.behaviour",
    "alignment": "emeval.probe.kinds.alignment",
    "mt-bench": "emeval.probe.kinds.mtbench",
    "contrast": "emeval.probe.kinds.contrast",
    "brevity": "emeval.probe.kinds.brevity",
}
UNASKED = ("contrast",)
"""Kinds that generate nothing: the likelihood of given replies is read instead."""


def find_questions(spec: ProbeSpec, root: DataRoot, setting: Setting, split: Split) -> list[Question]:
    """The questions a probe asks of a setting, by its kind. InputError if there are none."""
    found: list[Question] = import_module(KINDS[spec.kind]).questions(spec, root, setting, split)
    return found


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one user turn."""
    return (Message(role="user", content=text),)
