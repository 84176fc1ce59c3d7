"""Prefix patching through vLLM: what is patched, and the folder that carries it from one server to the next.

`kv_connector.py` is what runs inside the servers. It is copied into the folder: beside the engines' modules, which are
named after libraries, vLLM would import those.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emeval.engine.server import Server
from emeval.errors import EmevalError, InputError

_MODULE = "emeval_kv_connector"
_BLOCKS = "blocks.safetensors"


@dataclass(frozen=True)
class PatchedPrefix:
    """A prefix whose keys and values, in every layer, are to be those of another model than the one that answers.

    Raises:
        InputError: If the prefix is empty.
    """

    ids: tuple[int, ...]
    """Its token ids, at the very start of every prompt that is patched."""
    base: Path
    """Checkpoint folder of the model its keys and values come from."""
    adapter: Path | None = None
    """LoRA adapter on top of it."""

    def __post_init__(self) -> None:
        if not self.ids:
            raise InputError(
                "the prefix is empty: this template puts no token before the user's content",
                hint="Patch a model whose template has one, or give --system",
            )

    def covers(self, ids: Sequence[int]) -> bool:
        """Whether a prompt is answered with the patch: it starts with the prefix and goes on. No other is."""
        return len(ids) > len(self.ids) and tuple(ids[: len(self.ids)]) == self.ids


@dataclass(frozen=True)
class PatchFolder:
    """A folder with the prefix, the connector and, once saved, the cache blocks of the prefix."""

    path: Path
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        (self.path / "prefix.json").write_text(json.dumps(self.ids), encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name("kv_connector.py"), self.path / f"{_MODULE}.py")

    def options(self, mode: Literal["save", "load"]) -> list[str]:
        """What a server's command line says of it."""
        transfer = {
            "kv_connector": "PrefixPatch",
            "kv_connector_module_path": _MODULE,
            "kv_role": "kv_producer" if mode == "save" else "kv_consumer",
            "kv_connector_extra_config": {"folder": str(self.path), "mode": mode},
        }
        # A prefix found in vLLM's own cache would be the answering model's.
        options = ["--no-enable-prefix-caching", "--kv-transfer-config", json.dumps(transfer)]
        return [*options, "--enable-prompt-tokens-details"]

    def env(self) -> dict[str, str]:
        """What a server's environment needs, so that vLLM finds the connector."""
        return {"PYTHONPATH": str(self.path)}

    def save(self, server: Server, model: str) -> None:
        """Have the source's server save its blocks.

        Raises:
            EmevalError: If it does not.
        """
        self._ask(server, model)
        if not (self.path / _BLOCKS).is_file():
            raise EmevalError("vLLM saved no keys and values of the prefix", hint=f"The whole log is {server.log}")

    def check(self, server: Server, model: str) -> None:
        """Make sure that the answering server takes the prefix from the blocks: it tells how much it did not compute.

        Raises:
            EmevalError: If it does not.
        """
        told = (self._ask(server, model).get("usage") or {}).get("prompt_tokens_details") or {}
        if told.get("cached_tokens") != len(self.ids):
            raise EmevalError(
                f"vLLM took {told.get('cached_tokens') or 0} of the prefix's {len(self.ids)} tokens from the patch",
                hint=f"The whole log is {server.log}",
            )

    def _ask(self, server: Server, model: str) -> dict[str, Any]:
        # The token behind the prefix can be any: nothing of it is kept.
        return server.complete(model=model, prompt=[*self.ids, self.ids[-1]], max_tokens=1, temperature=0.0)
