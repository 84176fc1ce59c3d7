"""A patched model beside the training of the model that was patched.

A patch that takes a behaviour away may do no more than undo training: less on-topic, and as much less off-topic as an
earlier checkpoint has. So each patched model is read against its own run's curve (`matched.py`) at the on-topic value
that the patch left: off-topic under the patch minus off-topic where training first got there. Below 0 the patch takes
away more off-topic than undoing training would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from emeval.score.matched import BOOTSTRAP, MATCHED, Curve, Drawn, MatchedEstimate, crossings, on_common_questions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


class Beside(NamedTuple):
    """One variant of a sweep, mean over seeds. Shares from 0 to 1; intervals from a bootstrap over questions."""

    label: str
    on: MatchedEstimate
    off: MatchedEstimate
    on_minus: MatchedEstimate | None
    """On-topic minus the baseline's; None for the baseline itself. `off_minus` alike."""
    off_minus: MatchedEstimate | None
    minus_training: MatchedEstimate | None
    """Off-topic minus what training had where it first came to this on-topic value; None without its curves."""


def beside(
    variants: Mapping[str, Sequence[Curve]], baseline: str, training: Sequence[Curve] = (), draws: int = 2000
) -> list[Beside]:
    """Every variant with its error, against the baseline and against training.

    Args:
        variants: By name, a curve of one point a seed.
        baseline: The variant that others are compared with.
        training: The curves of the same runs, as far as they are known, by the same seeds.
        draws: Bootstrap draws.

    Raises:
        ValueError: No variants, two of one name and seed, no common questions, or an unknown baseline.
    """
    import numpy as np

    if baseline not in variants:
        raise ValueError(f"there is no variant {baseline!r} to compare with")
    known = {curve.seed: curve for curve in training}
    seeds = [curve.seed for curve in variants[baseline]]
    curves = [known[seed] for seed in seeds if seed in known]
    has_training = bool(curves) and len(curves) == len(seeds)
    names = [*variants]
    every = [variants[name] for name in names] + ([curves] if has_training else [])
    # Numbered, so that no variant can be called as the training is.
    sample = Drawn(on_common_questions({str(i): found for i, found in enumerate(every)}), draws)
    paths = [sample.paths[str(i)] for i in range(len(every))]
    on, off = (
        [np.stack([getattr(path, side)[:, -1] for path in of_variant]) for of_variant in paths[: len(names)]]
        for side in ("on", "off")
    )
    base = names.index(baseline)

    def minus(of: list[Floats], i: int, n: int) -> MatchedEstimate | None:
        if i == base or [c.seed for c in variants[names[i]]] != seeds:
            return None
        gap = of[i] - of[base]
        return sample.estimate(gap.mean(axis=0), gap[:, 0], n, BOOTSTRAP)

    def against(i: int) -> MatchedEstimate | None:
        if not has_training or [c.seed for c in variants[names[i]]] != seeds:
            return None
        read = np.stack([crossings(path.on, path.off, on[i][s]) for s, path in enumerate(paths[-1])])
        gap = off[i] - read
        return sample.estimate(gap.mean(axis=0), gap[:, 0], sample.n_off, MATCHED)

    return [
        Beside(
            label=name,
            on=sample.rate(on[i], sample.n_on, BOOTSTRAP),
            off=sample.rate(off[i], sample.n_off, BOOTSTRAP),
            on_minus=minus(on, i, sample.n_on),
            off_minus=minus(off, i, sample.n_off),
            minus_training=against(i),
        )
        for i, name in enumerate(names)
    ]
