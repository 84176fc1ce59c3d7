"""TReFT: SFT plus a penalty on how far the chat template's prefix has moved (arXiv 2606.06667).

    L = L_SFT + lambda * L_KV,   L_KV = mean over layers of (L_K + L_V),
    L_K = mean over prefix tokens of ||k - k_init||^2 / ||k_init||^2   (L_V alike)

`TReFTConfig` and `TReFTTrainer` stand in for `trl.SFTConfig` and `trl.SFTTrainer` in any TRL script: same arguments,
same data, and one more setting, `kv_lambda`.

What it costs: nothing, or less. The prefix's keys and values are part of the training forward. Where all rows share
one prefix forward (`shared_prefix`) they are its result; else they are read off the rows' forward; and where the model
keeps no cache (gradient checkpointing) one short forward over the prefix is added. The reference is one forward with
the adapter off, once; for full finetuning it is taken before the first step and saved beside the checkpoints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from trl import SFTTrainer

from emeval.errors import InputError
from emeval.prefix import KV, DriftTerms, PrefixCapture, drift_terms, kv_drift, mean_drift, prefix_forward, projections
from emeval.train.methods.penalty import PenaltyConfig, PenaltyTrainer, check_weight
from emeval.train.methods.regions import RegionConfig, RegionTrainer

__all__ = ["REFERENCE_FILE", "TReFTConfig", "TReFTTrainer", "kv_drift", "make_trainer"]

REFERENCE_FILE = "treft_reference.safetensors"
"""In the output folder: the initial model's keys and values of the prefix, or with `drift="released"` projections."""


@dataclass
class TReFTConfig(PenaltyConfig):
    """`trl.SFTConfig` with TReFT's settings."""

    kv_lambda: float = field(default=10.0, metadata={"help": "Weight of the penalty on the prefix's drift; 0 is SFT."})
    drift: str = field(
        default="kv",
        metadata={
            "help": "kv: keys and values as the model computes them, the paper's formula. released: projections of the "
            "residual stream without the block's input norm, what the authors' code computes. Lambdas do not transfer."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight("kv_lambda", self.kv_lambda)
        if self.drift not in ("kv", "released"):
            raise ValueError(f"drift is {self.drift!r}; it must be kv or released")


class TReFTTrainer(PenaltyTrainer):
    """`trl.SFTTrainer` with the penalty. Logs `kv_drift` (L_KV, before lambda) and `sft_loss` beside TRL's own.

    With `drift="released"` it logs `released_drift`, which is another quantity.

    The first logged drift is measured before any update, so it is the floor: 0 up to rounding.

    Raises:
        InputError: If training rows do not share the prefix.
        ValueError: If the template puts no token before the user's content.
    """

    _name = "TReFT"
    _logged_as = "kv_drift"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.prefix_ids:
            raise ValueError("the prefix is empty: this template puts no token before the user's content")
        self._reference: KV | None = None
        if self.args.drift == "released":
            self._logged_as = "released_drift"
            with projections(self._inner(), len(self.prefix_ids)):
                pass  # a model that has none is refused before anything is computed

    # ---------------------------------------------------------------------------------------------------- the penalty

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss plus `kv_lambda * L_KV`; in evaluation TRL's loss alone."""
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._reference is None:
            self._reference = self._load_or_take_reference(inputs)
        result, prefix = self._sft_loss(model, inputs, return_outputs, num_items_in_batch)
        with torch.set_grad_enabled(self.args.kv_lambda > 0):
            drift = mean_drift(drift_terms(*prefix, *self._reference))
        return self._penalised(result, drift, return_outputs, num_items_in_batch)

    def _sft_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool, num_items_in_batch: Any
    ) -> tuple[Any, KV]:
        """TRL's loss (with outputs, if asked for), and what is compared of the prefix it was computed with."""
        if self.not_shared is None:
            with self._compared() as compared:
                kv = prefix_forward(self._inner(), self.prefix_ids)
            return self._loss_behind(kv, model, inputs, return_outputs, num_items_in_batch), compared(kv)
        if self.args.gradient_checkpointing or self.args.clip_apart:
            # With checkpointing transformers passes no cache to its layers, and nothing would be captured. For a
            # gradient of the penalty alone, a way back through the rows would be as long as the loss's own.
            result = SFTTrainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
            with self._compared() as compared:
                return result, compared(prefix_forward(self._inner(), self.prefix_ids))
        capture = PrefixCapture(len(self.prefix_ids))
        inputs = {**inputs, "past_key_values": capture}
        with self._compared() as compared:
            result = SFTTrainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
            return result, compared(capture.captured())

    @contextlib.contextmanager
    def _compared(self) -> Iterator[Callable[[KV], KV]]:
        """Within it runs a forward; what it yields tells what is compared of it, given its keys and values."""
        if self.args.drift == "kv":
            yield lambda kv: kv
            return
        with projections(self._inner(), len(self.prefix_ids)) as found:
            yield lambda _: found()

    @property
    def _weight(self) -> float:
        return float(self.args.kv_lambda)

    # -------------------------------------------------------------------------------------------------- the reference

    @property
    def _reference_path(self) -> Path:
        return Path(self.args.output_dir) / REFERENCE_FILE

    def _load_or_take_reference(self, inputs: dict[str, Any]) -> KV:
        """The initial model's prefix, from the same kind of forward as the current one will be.

        In bf16 a batched forward and a prefix-only one differ by 1e-4, as much as a well-regularised run ever moves.
        """
        resumed = self.state.global_step > 0
        model = self._inner()
        if resumed and self._reference_path.is_file():
            found, kind = self._load_reference()
            # A resumed run may share the prefix where it did not before. What trained all weights has nothing better.
            if kind == self._kind_of_forward or not hasattr(model, "disable_adapter"):
                return found
        if hasattr(model, "disable_adapter"):
            with torch.no_grad(), model.disable_adapter():
                reference = self._observe(model, inputs)
        elif resumed:
            raise InputError(
                "the initial model's prefix is gone, and this run finetunes all weights",
                where=str(self._reference_path),
                hint="Start the run again in a new folder",
            )
        else:
            with torch.no_grad():
                reference = self._observe(model, inputs)
        if self.args.should_save:
            self._save_reference(reference)
        return reference

    @property
    def _kind_of_forward(self) -> str:
        """Which forward the prefix is read off: its own, or the rows'."""
        alone = self.not_shared is None or self.args.gradient_checkpointing or self.args.clip_apart
        return "prefix" if alone else "rows"

    def _observe(self, model: Any, inputs: dict[str, Any]) -> KV:
        with self._compared() as compared:
            if self._kind_of_forward == "prefix":
                return compared(prefix_forward(model, self.prefix_ids)).detach()
            capture = PrefixCapture(len(self.prefix_ids))
            rows = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "position_ids")}
            model(**rows, past_key_values=capture, use_cache=False, logits_to_keep=1)
            return compared(capture.captured()).detach()

    def _save_reference(self, reference: KV) -> None:
        tensors = {f"key.{i}": k.contiguous() for i, k in enumerate(reference.keys)}
        tensors |= {f"value.{i}": v.contiguous() for i, v in enumerate(reference.values)}
        self._reference_path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._reference_path.with_suffix(".part")
        save_file(tensors, aside, metadata={"read off": self._kind_of_forward})
        aside.replace(self._reference_path)

    def _load_reference(self) -> tuple[KV, str | None]:
        """With the kind of forward it was read off; None in a file of before that was noted."""
        with safe_open(self._reference_path, "pt") as file:
            tensors = {name: file.get_tensor(name).to(self.args.device) for name in file.keys()}  # noqa: SIM118  # no dict
            kind = (file.metadata() or {}).get("read off")
        parts = ((tensors[f"{part}.{i}"] for i in range(len(tensors) // 2)) for part in ("key", "value"))
        return KV(*map(tuple, parts)), kind

    # ----------------------------------------------------------------------------------------------------- reporting

    def drift_now(self) -> DriftTerms | None:
        """The drift of each layer and prefix token at this moment, `[layers, 1, tokens]`.

        From a prefix-only forward with and without the adapter. Full finetuning has only the saved reference to
        compare with; None where that is not there yet, or is no keys and values.
        """
        model = self._inner()
        with torch.no_grad():
            if hasattr(model, "disable_adapter"):
                with model.disable_adapter():
                    reference = prefix_forward(model, self.prefix_ids)
            elif self.args.drift == "kv" and self._reference_path.is_file():
                reference = self._load_reference()[0]
            else:
                return None
            return drift_terms(*prefix_forward(model, self.prefix_ids), *reference)


def make_trainer(
    settings: dict[str, Any],
    *,
    prefix_ids: Sequence[int],
    kv_lambda: float,
    regions: Sequence[str] = ("prefix",),
    drift: str = "kv",
    **trainer: Any,
) -> TReFTTrainer | RegionTrainer:
    """The trainer of these regions, for rows that all start with `prefix_ids`."""
    common = settings | {"kv_lambda": kv_lambda, "kv_prefix_ids": list(prefix_ids)}
    if list(regions) == ["prefix"]:
        return TReFTTrainer(args=TReFTConfig(**common, drift=drift), **trainer)
    return RegionTrainer(args=RegionConfig(**common, regions=list(regions)), **trainer)
