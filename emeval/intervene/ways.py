"""The ways to patch that a command names: which layers, which tokens, keys or values, or a residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from emeval.config import PatchConfig
from emeval.engine.patch import Patch, SpanPatch
from emeval.errors import InputError
from emeval.intervene.kv import Part, mixed, patched_prefix
from emeval.intervene.residual import patched_residual
from emeval.models import OTHER, Pair, Which
from emeval.prefix import slides

UNPATCHED = "unpatched"
_WHOSE = {"tuned": "the tuned model", "initial": "the initial model"}


@dataclass(frozen=True)
class Way:
    """One way to patch."""

    label: str
    """As tables call it."""
    place: float | None
    """Where it stands in a plot over layers or tokens."""
    family: str
    """What it shares with those it makes a line with there."""
    axis: str
    """What the plot counts: `layer` or `prefix token`."""
    into: Which
    kind: str
    """`none`, `kv`, `residual`, `query` or `postfix`."""
    layers: frozenset[int] = frozenset()
    tokens: frozenset[int] = frozenset()
    part: Part = "both"

    def patch(self, pair: Pair, prefix_ids: Sequence[int], postfix_ids: Sequence[int]) -> Patch:
        """What the engine puts into the model. Errors as `SpanPatch`."""
        acting, source, ids = partial(pair.acting, self.into), OTHER[self.into], tuple(prefix_ids)
        if self.kind == "none":
            return Patch(acting)
        if self.kind in ("query", "postfix"):
            own = patched_prefix(pair, ids, self.into) if ids and not slides(pair.holding(self.into)) else None
            return Patch(acting, own, SpanPatch(pair, source, self.kind, ids, postfix_ids), ids)
        if self.kind == "residual":
            (layer,) = self.layers
            return Patch(acting, patched_residual(pair, ids, layer, self.tokens, into=self.into), ids=ids)
        other = patched_prefix(pair, prefix_ids, source)
        if len(self.layers) < len(other.keys) or len(self.tokens) < other.tokens or self.part != "both":
            other = mixed(patched_prefix(pair, prefix_ids, self.into), other, self.layers, self.tokens, self.part)
        return Patch(acting, other, ids=ids)

    @property
    def whole(self) -> bool:
        """Whether vLLM can do it: nothing, or all of the prefix's keys and values."""
        return self.kind == "none" or (self.kind == "kv" and not self.family and self.part == "both")


def baselines(config: PatchConfig) -> list[Way]:
    """What the patched models are read beside: the model without a patch, and the other one."""
    other = OTHER[config.into]
    alone = Way(UNPATCHED, None, "", "layer", config.into, "none")
    return [alone, Way(f"{other} model", None, "", "layer", other, "none")]


def ways(config: PatchConfig, layers: int, tokens: int) -> list[Way]:
    """All that the command asks for, in order.

    Args:
        config: The command's settings.
        layers: How many blocks the model has.
        tokens: How many tokens the prefix has.

    Raises:
        InputError: A layer or token that is not there, or nothing to patch.
    """
    regions = config.region.split(",")
    if not tokens and regions != ["postfix"]:
        what = "the template puts no token before the question: there is no prefix, and no such number of query tokens"
        raise InputError(what, where=f"--region {config.region}", hint="Name the postfix")
    found = _of_prefix(config, layers, tokens) if "prefix" in regions else []
    behind = {"query": "", "postfix": " (empty query)"}
    spans = [region for region in regions if region != "prefix"]
    return found + [Way(_label(name, config, behind[name]), None, "", "layer", config.into, name) for name in spans]


def _of_prefix(config: PatchConfig, layers: int, tokens: int) -> list[Way]:
    layer_sets = _sets(config.layers, layers, "layer", "--layers")
    token_sets = _sets(config.tokens, tokens, "token", "--tokens")
    if config.what == "residual" and not all(len(found) == 1 for _, found, _ in layer_sets):
        hint = "Give --layers each, or one number"
        raise InputError("a residual stream is patched at one layer", where=f"--layers {config.layers}", hint=hint)
    what = "prefix" + {"both": "", "keys": " keys", "values": " values"}[config.part]
    what = "prefix residual" if config.what == "residual" else what
    found = []
    for at, chosen, place in layer_sets:
        for where, positions, spot in token_sets:
            # Over layers at these tokens, or over tokens at these layers.
            over = [f"layers {config.layers}", where] if place is not None else [at, f"tokens {config.tokens}"]
            family = ", ".join(part for part in over if part and not part.endswith(" all"))
            found.append(
                Way(
                    _label(what, config, "".join(f", {part}" for part in (at, where) if part)),
                    place if place is not None else spot,
                    f"{what}, {family}" if family else "",
                    "layer" if place is not None else "prefix token",
                    config.into,
                    config.what,
                    chosen,
                    positions,
                    config.part,
                )
            )
    return found


def _label(what: str, config: PatchConfig, behind: str) -> str:
    converse = " in the initial model" if config.into == "initial" else ""
    return f"{what} from {_WHOSE[OTHER[config.into]]}{converse}{behind}"


def _sets(text: str, count: int, what: str, option: str) -> list[tuple[str, frozenset[int], float | None]]:
    """Named sets of layers (or tokens), each with its place in a plot, from what was asked for."""
    every = range(count)
    if text == "all":
        return [("", frozenset(every), None)]
    if text == "each":
        return [(f"{what} {i}", frozenset({i}), float(i)) for i in every]
    if text == "below":
        return [(f"{what}s 0-{i}", frozenset(range(i + 1)), float(i)) for i in every]
    if text == "above":
        return [(f"{what}s {i}-{count - 1}", frozenset(range(i, count)), float(i)) for i in every]
    kind, _, size = text.partition(":")
    if kind == "windows":
        width = int(size) if size.isdecimal() else 0
        if not 0 < width <= count:
            raise InputError(f"a window holds 1 to {count} {what}s", where=f"{option} {text}", hint="Like windows:5")
        starts = range(count - width + 1)
        return [(f"{what}s {i}-{i + width - 1}", frozenset(range(i, i + width)), i + (width - 1) / 2) for i in starts]
    return [(f"{what} {text}" if text.isdecimal() else f"{what}s {text}", _listed(text, count, what, option), None)]


def _listed(text: str, count: int, what: str, option: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            hint = "Give all, each, below, above, windows:5, or numbers like 0,3,5-8"
            raise InputError(f"'{part.strip()}' is no {what}", where=f"{option} {text}", hint=hint)
        found |= set(range(int(first), int(last or first) + 1))
    if not found or max(found) >= count:
        hint = f"They count from 0 to {count - 1}"
        raise InputError(f"there are {count} {what}s", where=f"{option} {text}", hint=hint)
    return frozenset(found)
