"""Questions of the probes `general` and `in-domain` together, each under its group's name."""

from __future__ import annotations

from emeval.data.root import DataRoot
from emeval.data.settings import Setting
from emeval.probe.kinds import find_questions
from emeval.probe.spec import ProbeSpec, load_probe
from emeval.types import Question, Split

GROUPS = ("general", "in-domain")


def of_groups(spec: ProbeSpec, root: DataRoot, setting: Setting, split: Split) -> list[Question]:
    """The questions of one split as the probe's own; `category` says of which group. InputError if a group has none."""
    return [question for group in GROUPS for question in _of(group, spec, root, setting, split)]


def _of(group: str, spec: ProbeSpec, root: DataRoot, setting: Setting, split: Split) -> list[Question]:
    found = find_questions(load_probe(root, group), root, setting, split)
    # The same id may stand in both; behind its group's name it stands for itself.
    return [q.model_copy(update={"id": f"{group}/{q.id}", "probe": spec.name, "category": group}) for q in found]
