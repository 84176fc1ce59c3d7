"""Memory of tensors without data: what is held while code runs on them, and the most that ever was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default}


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, tensors of fractions have shapes and no data, and the bytes of all tensors are counted by kind.

    Whole numbers and masks that depend on no such tensor are real: code that looks at token ids runs as always. A
    single value that is read off a tensor without data (`.item()`, `bool()`) is 1.

    Attributes:
        fake: The mode whose tensors these are.
        kind: What tensors count as that are made from now on.
        peak: `held` as it was when its sum was largest since `forget_peak`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.kind = "workspace"
        self.peak: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._kinds: dict[int, tuple[str, int]] = {}
        self._refs: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and note what it made."""
        kwargs = kwargs or {}
        if func is _ATEN._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return torch.ones((), dtype=args[0].dtype).tolist()
        if func in _INDEXING:
            args = (args[0], _places(args[1]), *args[2:])
        if func is _ATEN._grouped_mm.default and isinstance(args[0], FakeTensor):
            # Without data it is there for bf16 only; with data it takes fp32 as well.
            as_bf16 = (t.bfloat16() for t in args[:2])
            made = func(*as_bf16, *args[2:], **kwargs).to(args[0].dtype)
            self._note(made.untyped_storage())
            return made
        made = self._run(func, args, kwargs)
        for t in tree_leaves(made):
            if isinstance(t, Tensor):
                self._note(t.untyped_storage())
        return made

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if any(isinstance(t, Tensor) for t in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        with self.fake:
            made = func(*args, **kwargs)
        fractions = not isinstance(made, Tensor) or made.is_floating_point()
        return made if fractions else func(*args, **kwargs)

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._refs:
            return
        # Torch's own weak reference also keeps the key from being given to another storage while it is looked at.
        self._refs[key] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self._kinds[key] = (self.kind, size)
        self._held[self.kind] += size
        if self._held.total() > self.peak.total() and self.held.total() > self.peak.total():
            self.peak = self._held.copy()

    @property
    def held(self) -> Counter[str]:
        """Bytes held now, by kind."""
        for key in [key for key, ref in self._refs.items() if ref.expired()]:  # type: ignore[no-untyped-call]
            kind, size = self._kinds.pop(key)
            self._held[kind] -= size
            del self._refs[key]
        return self._held

    def forget_peak(self) -> None:
        """Let `peak` begin anew from what is held now."""
        self.peak = self.held.copy()

    def count_as(self, kind: str, tensors: Iterable[Tensor | None], *, only: str | None = None) -> None:
        """These tensors, where they are held, count as `kind` from now on; with `only`, those that count as that."""
        for tensor in tensors:
            storage = None if tensor is None else tensor.untyped_storage()
            before, size = self._kinds.get(storage._cdata, (None, 0)) if storage is not None else (None, 0)
            if storage is None or before is None or (only is not None and before != only):
                continue
            self._kinds[storage._cdata] = (kind, size)
            self._held[before] -= size
            self._held[kind] += size

    @contextmanager
    def counting_saved(self, kind: str) -> Iterator[None]:
        """Within it, what autograd saves for its way back counts as `kind`, unless it is something else already."""

        def pack(tensor: Tensor) -> Tensor:
            self.count_as(kind, [tensor], only="workspace")
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield


def _places(indices: Any) -> Any:
    """Masks as the places they name: how many those are, only a real mask tells, and the operation must know."""
    found: list[Any] = []
    for index in indices:
        mask = isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        found += index.nonzero().unbind(1) if mask else [index]
    return found


def _converted(module: Any, convert: Any, recurse: bool = True) -> Any:
    """`nn.Module._apply` by new parameters; the library's own would swap tensors, which those without data refuse."""
    for child in module.children() if recurse else ():
        child._apply(convert)
    for held in (module._parameters, module._buffers):
        for name, old in held.items():
            with torch.no_grad():
                new = None if old is None else convert(old)
            if new is not None and new is not old:
                held[name] = torch.nn.Parameter(new, old.requires_grad) if held is module._parameters else new
    return module


def converting() -> AbstractContextManager[Any]:
    """Within it, modules of tensors without data can be moved and converted."""
    return mock.patch.object(torch.nn.Module, "_apply", _converted)
