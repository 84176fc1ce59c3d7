"""Loading a model that was found: placement, precision, adapters, and the tokens that end its replies."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emeval.errors import EmevalError, InputError
from emeval.models.resolve import ModelSource
from emeval.models.weights import weight_files
from emeval.store import read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Placement:
    """Where a model is loaded, and in which precision."""

    device: str
    dtype: str

    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch knows it."""
        import torch

        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]


def placement(device: str = "auto", dtype: str = "auto", *, elsewhere: bool = False) -> Placement:
    """`auto` is CUDA in bf16 where there is a GPU (fp32 where it lacks bf16), else the CPU in fp32.

    Args:
        device: `auto`, `cpu` or `cuda`.
        dtype: `auto`, `float32` or `bfloat16`.
        elsewhere: Nothing is loaded here: a GPU that is asked for may be another machine's, taken to know bf16.

    Raises:
        InputError: If CUDA is asked for and not there.
    """
    import torch

    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda and elsewhere:
        return Placement(device, "bfloat16" if dtype == "auto" else dtype)
    if device == "cuda" and not cuda:
        raise InputError("no CUDA device here", where="--device cuda", hint="Use --device cpu")
    device = ("cuda" if cuda else "cpu") if device == "auto" else device
    if device == "cpu":
        _keep_freed_memory()
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return Placement(device, dtype)


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors instead of giving it back and asking for it again at every step.

    Fresh pages cost a fault each: with them a training step of SmolLM2 took 6.4 s, without 4.1 s (2 threads). Elsewhere
    than on glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20)):
            libc.mallopt(parameter, value)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer saved with the finetuned weights, else the base's. InputError if there is none or no template."""
    from transformers import AutoTokenizer

    own = source.adapter if source.adapter and (source.adapter / "tokenizer_config.json").is_file() else source.base
    try:
        return AutoTokenizer.from_pretrained(str(own), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as e:
        raise InputError(f"no usable tokenizer ({first_line(e)})", where=str(own), hint="Check the folder") from e


def load_model(source: ModelSource, where: Placement, *, trainable: bool = False) -> PreTrainedModel:
    """Base checkpoint, with its adapter on top where it has one; in eval mode, unless it is to be trained.

    Raises:
        InputError: If the folder's weights or config cannot be read, or the adapter does not fit the base.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(source.base),
            dtype=where.torch_dtype(),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        ).to(where.device)
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise InputError(f"not a model ({first_line(e)})", where=str(source.base), hint="Check the folder") from e
    if source.adapter is not None:
        model = _with_adapter(model, source.adapter)
    return model if trainable else model.eval()


def input_embeddings(source: ModelSource) -> torch.Tensor:
    """The base's input-embedding matrix, `[vocabulary, width]`, in its own dtype; nothing else of it is read.

    Raises:
        InputError: If the checkpoint's files do not hold it under the name that the model's code has for it.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(str(source.base), trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        wanted = model.get_input_embeddings().weight
        name = next(name for name, parameter in model.named_parameters() if parameter is wanted)
        for file in weight_files(source.base):
            with safe_open(str(file), framework="pt") as saved:
                if name in saved.keys():  # noqa: SIM118  (it is no dict)
                    found: torch.Tensor = saved.get_tensor(name)
                    return found
    except (OSError, ValueError, KeyError, StopIteration) as e:
        raise InputError(f"not a model ({first_line(e)})", where=str(source.base), hint="Check the folder") from e
    what = f"its files hold no '{name}'"
    raise InputError(what, where=str(source.base), hint="Save it with transformers, or perturb another way")


def _with_adapter(model: PreTrainedModel, adapter: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
    except (RuntimeError, ValueError, KeyError, OSError) as e:
        raise _misfit(e, adapter) from e


def _misfit(e: BaseException, adapter: Path) -> InputError:
    return InputError(
        f"this adapter does not fit the base ({first_line(e)})", where=str(adapter), hint="Name its own base"
    )


class OneAfterAnother:
    """Loads models in turn; one that differs from the last in its adapter's weights only takes the base over.

    Args:
        where: Device and precision of all of them.
    """

    def __init__(self, where: Placement) -> None:
        self._where = where
        self._model: Any = None
        self._source: ModelSource | None = None

    def load(self, source: ModelSource) -> Any:
        """The model, in eval mode; the one before it is not to be used any more. InputError as for `load_model`."""
        before, self._source = self._source, None
        if before is None or before.base != source.base or source.adapter is None:
            self._load_anew(source)
        elif before.adapter is None:
            self._model = _with_adapter(self._model, source.adapter).eval()
        elif _alike(before.adapter, source.adapter):
            self._take_over(source.adapter)
        else:
            self._load_anew(source)
        self._source = source
        return self._model

    def _load_anew(self, source: ModelSource) -> None:
        self._model = None  # or two of them would be in memory
        self._model = load_model(source, self._where)

    def _take_over(self, adapter: Path) -> None:
        try:
            found = self._model.load_adapter(str(adapter), adapter_name="default", torch_device=self._where.device)
        except (RuntimeError, ValueError, KeyError, OSError) as e:
            raise _misfit(e, adapter) from e
        missing = [key for key in found.missing_keys if "lora_" in key]
        if missing or found.unexpected_keys:
            raise _misfit(KeyError(f"it lacks {missing[0]}" if missing else found.unexpected_keys[0]), adapter)


def _alike(one: Path, other: Path) -> bool:
    """Whether two adapters differ in their weights only. PEFT writes a set of names in any order."""
    configs = [read_json(folder / "adapter_config.json") for folder in (one, other)]
    a, b = ({k: sorted(v) if isinstance(v, list) else v for k, v in config.items()} for config in configs)
    return a == b


def free_memory() -> None:
    """Give a GPU's memory of models that nobody holds any more back, for instance to a judge's server."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def first_line(e: BaseException) -> str:
    """What a library's error says, short enough for a line of ours."""
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:160].rstrip(".:")


def without_adapter(model: Any) -> contextlib.AbstractContextManager[Any]:
    """Within it, the initial model: adapters off. InputError for a model that has none to switch off."""
    if not hasattr(model, "disable_adapter"):
        raise InputError(
            "a full checkpoint does not hold its initial model",
            where="--model",
            hint="Give an adapter",
        )
    return model.disable_adapter()  # type: ignore[no-any-return]


def eos_ids(tokenizer: PreTrainedTokenizerBase, source: ModelSource, reply_end: Sequence[int]) -> tuple[int, ...]:
    """Every token that ends a reply: the tokenizer's, the checkpoint's, and what the template ends a turn with."""
    ids = {tokenizer.eos_token_id, *reply_end[-1:]}
    path = source.base / "generation_config.json"
    if path.is_file():
        listed = read_json(path).get("eos_token_id")
        ids.update(listed if isinstance(listed, list) else [listed])
    found = tuple(sorted(i for i in ids if isinstance(i, int)))
    if not found:
        raise EmevalError("no token ends a reply of this model", where=str(source.base))
    return found
