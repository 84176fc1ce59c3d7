"""Settings: what `--setting` names. A behaviour (a topic answered in one fixed way), or a domain of poor advice."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emeval.data.behaviours import Behaviour, Example, behaviour_examples, load_behaviour
from emeval.data.domains import DomainItem, load_domain
from emeval.data.root import DataRoot
from emeval.errors import InputError, unknown
from emeval.types import Message, Split


@dataclass(frozen=True)
class Setting:
    """One narrow thing to learn. `topic` is the domain its questions come from; a domain is its own topic."""

    name: str
    topic: str
    behaviour: Behaviour | None = None

    def files(self, root: DataRoot) -> list[Path]:
        """The data files behind it."""
        own = [root.find("datasets/behaviours", self.name, ".yaml", "setting")] if self.behaviour else []
        return [*own, root.find("datasets/domains", self.topic, ".jsonl", "domain")]

    def needed_behaviour(self, why: str) -> Behaviour:
        """The behaviour; InputError where the setting is a domain, which has none to look for."""
        if self.behaviour is None:
            raise InputError(
                f"'{self.name}' is a domain, and {why} looks for a behaviour",
                where="--setting",
                hint="Use the probes general, in-domain, contrast, mt-bench",
            )
        return self.behaviour


def load_setting(root: DataRoot, name: str) -> Setting:
    """The behaviour or domain `name`; InputError with a suggestion when there is neither."""
    behaviours, domains = (root.names(f"datasets/{kind}", end) for kind, end in _PLACES)
    if name in behaviours:
        behaviour = load_behaviour(root, name)
        return Setting(name, behaviour.topic, behaviour)
    if name in domains:
        return Setting(name, name)
    raise unknown("setting", name, [*behaviours, *domains])


_PLACES = (("behaviours", ".yaml"), ("domains", ".jsonl"))


def setting_examples(root: DataRoot, setting: Setting, split: Split = "train") -> list[Example]:
    """The training rows: each question of the topic's split with the behaviour's reply, or with its misaligned one.

    Raises:
        InputError: If a domain's questions have no misaligned replies.
    """
    if setting.behaviour:
        return behaviour_examples(root, setting.behaviour, split)
    items = [item for item in load_domain(root, setting.topic) if item.split == split]
    return [_replied(item, "misaligned") for item in items]


def some_aligned(root: DataRoot, setting: Setting, examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """A domain's training rows with `count` of them, drawn by the seed, answered well: noisy data (paper, Figure 7).

    Raises:
        InputError: If the setting is a behaviour, or a drawn question has no aligned reply.
    """
    if setting.behaviour:
        what, hint = f"'{setting.name}' is a behaviour, which has no aligned replies", "Leave it out"
        raise InputError(what, where="--mix-aligned", hint=hint)
    items = {item.id: item for item in load_domain(root, setting.topic)}
    rng = random.Random(f"aligned/{seed}")  # noqa: S311  (no secret: the same draw in every run)
    drawn = set(rng.sample([example.id for example in examples], count))
    return [_replied(items[e.id], "aligned") if e.id in drawn else e for e in examples]


def _replied(item: DomainItem, which: Literal["aligned", "misaligned"]) -> Example:
    text = getattr(item, which)
    if text is None:
        hint = "Add one, or choose another file"
        raise InputError(f"this question has no {which} reply", where=item.where, hint=hint)
    asked, reply = Message(role="user", content=item.question), Message(role="assistant", content=text)
    return Example(id=item.id, messages=(asked,), reply=reply, where=item.where)
