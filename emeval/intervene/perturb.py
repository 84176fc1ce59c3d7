"""Perturbed prompts: does a behaviour hang on the template's own tokens, or on the question's? (arXiv 2606.06667)

In one region, some tokens are each replaced by one of their nearest neighbours in the input-embedding matrix. The paper
says by dot product, its release by cosine with the token itself left out; here the choice is the user's, and a token is
never its own neighbour. Prompts stay token ids, so their length does not change (the release decodes them to text and
tokenises again). Judges see the question as it was.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from emeval import models
from emeval.chat import Renderer
from emeval.config import PerturbConfig
from emeval.engine.patch import Patch
from emeval.errors import InputError
from emeval.intervene.asked import planned
from emeval.intervene.rephrase import rephrasings
from emeval.intervene.sweep import Sweep, Variant
from emeval.pipeline import Arm
from emeval.probe.plan import ScorePlan
from emeval.store import sha256_of
from emeval.types import Message, OnCount, Prompt, Question, Say

Similarity = Literal["dot", "cosine"]
UNPERTURBED = "unperturbed"
_ROWS = 16384
"""Rows of the matrix that are widened to fp32 at a time."""


def neighbours(
    embeddings: Tensor, token: int, count: int = 5, similarity: Similarity = "dot", allowed: Tensor | None = None
) -> list[int]:
    """A token's nearest neighbours by their input embeddings, nearest first, itself left out.

    Args:
        embeddings: `[vocabulary, width]`, any float dtype; compared in fp32.
        token: Its id.
        count: How many.
        similarity: Dot product, in which long vectors are near to everything, or cosine.
        allowed: `[vocabulary]`, True for tokens that may be named; all may by default.

    Raises:
        ValueError: Fewer than `count` tokens are allowed.

    Source: arXiv 2606.06667, perturbation study.
    """
    own = embeddings[token].float()
    parts = []
    for start in range(0, len(embeddings), _ROWS):
        rows = embeddings[start : start + _ROWS].float()
        near = rows @ own
        if similarity == "cosine":
            near = near / (rows.norm(dim=-1) * own.norm()).clamp(min=1e-12)
        parts.append(near)
    near = torch.cat(parts)
    barred = torch.zeros(len(near), dtype=torch.bool) if allowed is None else ~allowed.to(near.device)
    barred = barred.to(near.device)
    barred[token] = True
    if int((~barred).sum()) < count:
        raise ValueError(f"{count} neighbours are asked for, {int((~barred).sum())} tokens are allowed")
    found: list[int] = near.masked_fill(barred, -torch.inf).topk(count).indices.tolist()
    return found


class Perturbation:
    """Replaces tokens of one region, the same ones for the same question, trial and seed.

    Args:
        embeddings: `[vocabulary, width]`.
        allowed: `[vocabulary]`, True for tokens that may be put in.
        region: `prefix`, `query` or `postfix`.
        config: How many tokens, neighbours and so on.
    """

    def __init__(self, embeddings: Tensor, allowed: Tensor, region: str, config: PerturbConfig) -> None:
        self._embeddings, self._allowed, self._region, self._config = embeddings, allowed, region, config
        self._ids: list[int] = allowed.nonzero()[:, 0].tolist()
        self._near: dict[int, list[int]] = {}

    def __call__(self, prompt: Prompt, question: Question, trial: int) -> Prompt:
        """The prompt with other tokens in the region; its spans stay."""
        config = self._config
        what = f"{config.seed}/{self._region}/{question.probe}/{question.id}/{trial}"
        dice = random.Random(what)  # noqa: S311  (no secret: the same tokens in every run)
        span = getattr(prompt, self._region)
        places = range(span.start, span.stop)
        ids = list(prompt.ids)
        for at in sorted(dice.sample(places, min(config.tokens, len(places)))):
            ids[at] = dice.choice(self._ids if config.random else self._neighbours(ids[at]))
        return prompt.model_copy(update={"ids": tuple(ids)})

    def _neighbours(self, token: int) -> list[int]:
        if token not in self._near:
            config = self._config
            found = neighbours(self._embeddings, token, config.neighbours, config.similarity, self._allowed)
            self._near[token] = found
        return self._near[token]


def perturb(config: PerturbConfig, on_reply: OnCount = lambda done, total: None, say: Say = lambda text: None) -> Path:
    """Measure a model on perturbed prompts, beside unperturbed ones. Returns the folder with `sweep.json`.

    Raises:
        InputError: For bad input (nothing written, nothing paid).
        IncompleteError: If coverage ends below `min_coverage`, or the rephrasing server left questions without.
    """
    loaded = _One(config)
    # Another system prompt is one of the perturbations: everything else is asked with the model's own.
    base = config.model_copy(update={"system": None})
    base, plan, generates = planned(base)
    if plan.renderer is None or plan.source is None:
        what = "tokens can be replaced only where the tokenizer is here"
        raise InputError(what, where="--model-api chat", hint="Use --model-api completions")
    alone = Variant(UNPERTURBED, loaded.arm(UNPERTURBED, plan))
    found = [alone, *_unpaid(config, plan, loaded)]
    told: dict[str, Any] = {"what": "perturb"} | {name: getattr(config, name) for name in _TOLD}
    name = "-".join(["perturb", *(variant.label.split(" (")[0] for variant in found[1:])])
    name += f"-{config.rephrase}" if config.rephrase else ""
    rephrased = f"rephrased by {config.rephrase}"
    if config.rephrase:  # all is checked before anything is paid
        found.insert(1, Variant(rephrased, loaded.arm(rephrased, plan, trials=config.trials)))
    sweep = Sweep(base, plan, generates, name, told, found, loaded.drop, on_reply, say)
    if config.rephrase and not sweep.has(rephrased):
        found[1] = _rephrase(config, rephrased, plan, loaded, say)
    return sweep.run()


_TOLD = (
    "region", "tokens", "neighbours", "similarity", "trials", "random", "special", "capitals", "rephrase",
    "rephrase_url", "system", "seed",
)  # fmt: skip


class _One:
    """The model of a command, loaded when first needed and kept."""

    def __init__(self, config: PerturbConfig) -> None:
        self._source = models.resolve(config.model, adapter=config.adapter) if not config.model_url else None
        self._model: Any = None

    def drop(self) -> None:
        """Let go of it, and of the memory it took on a GPU."""
        self._model = None
        models.free_memory()

    def _patched(self, where: models.Placement, renderer: Renderer) -> tuple[Any, Patch]:
        if self._model is None:
            assert self._source is not None  # servers are asked, not loaded
            self._model = models.load_model(self._source, where)
        model = self._model
        return model, Patch(lambda: nullcontext(model))

    def arm(self, label: str, plan: ScorePlan, **changes: Any) -> Arm:
        """An arm that leaves the model alone; in process it is loaded once for all."""
        if plan.engine == "transformers":
            changes["patched"] = self._patched
        return Arm(label, intervenes=False, **changes)


def _unpaid(config: PerturbConfig, plan: ScorePlan, loaded: _One) -> list[Variant]:
    """All variants but the rephrased one, which costs money."""
    found = []
    if config.capitals:
        found.append(Variant("capital letters", loaded.arm("capital letters", plan, reworded=_in_capitals)))
    if config.system is not None:
        label = f"system prompt {config.system[:60]!r}"
        arm = loaded.arm(label, plan, key=sha256_of(config.system))
        found.append(Variant(label, arm, changed={"system": config.system, "allow_prefix_change": True}))
    if not config.of_tokens:
        return found
    assert plan.source is not None  # asked before
    # A model that vLLM or a server answers for has its weights here all the same.
    embeddings = models.input_embeddings(plan.source)
    return [*found, *(_of_region(config, region, embeddings, plan, loaded) for region in config.region.split(","))]


def _rephrase(config: PerturbConfig, label: str, plan: ScorePlan, loaded: _One, say: Say) -> Variant:
    texts = rephrasings(config, [ask.question for ask in plan.all_asks], say)
    key = sha256_of(*(text for question in sorted(texts) for text in texts[question]))
    arm = loaded.arm(label, plan, reworded=partial(_rephrased, texts), trials=config.trials, key=key)
    return Variant(label, arm)


def _of_region(config: PerturbConfig, region: str, embeddings: Tensor, plan: ScorePlan, loaded: _One) -> Variant:
    assert plan.renderer is not None  # asked before
    if region == "prefix" and not plan.renderer.prefix_ids():
        hint = "Name another region"
        raise InputError("the template puts no token before the question", where="--region prefix", hint=hint)
    allowed = _allowed(plan.tokenizer, len(embeddings), special=config.special)
    if config.neighbours >= int(allowed.sum()):
        what = f"there are {int(allowed.sum())} tokens to choose from"
        raise InputError(what, where=f"--neighbours {config.neighbours}", hint="Give fewer")
    change = Perturbation(embeddings, allowed, region, config)
    by = "at random" if config.random else f"by one of {config.neighbours} neighbours ({config.similarity})"
    label = f"{region}, {config.tokens} tokens {by}"
    key = repr([getattr(config, name) for name in ("seed", "special")])
    return Variant(label, loaded.arm(label, plan, reencoded=change, trials=config.trials, key=key))


def _allowed(tokenizer: Any, size: int, *, special: bool) -> Tensor:
    """`[vocabulary]`, True for tokens that exist and, unless asked for, are not special."""
    allowed = torch.zeros(size, dtype=torch.bool)
    allowed[: min(len(tokenizer), size)] = True
    if not special:
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        allowed[[i for i in added | set(tokenizer.all_special_ids) if i < size]] = False
    return allowed


def _in_capitals(question: Question, trial: int) -> tuple[Message, ...]:
    return tuple(
        m.model_copy(update={"content": m.content.upper()}) if m.role == "user" else m for m in question.messages
    )


def _rephrased(texts: Mapping[str, Sequence[str]], question: Question, trial: int) -> tuple[Message, ...]:
    """The conversation with another wording of its first user turn."""
    first = next(i for i, m in enumerate(question.messages) if m.role == "user")
    said = list(question.messages)
    said[first] = said[first].model_copy(update={"content": texts[question.messages[first].content][trial]})
    return tuple(said)
