"""Where the data that ships with emeval lies: inside the wheel, or in the repository it is run from."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from emeval.errors import InputError, unknown

FOLDERS = (
    "prompts/probes",
    "prompts/judges",
    "datasets/domains",
    "datasets/behaviours",
    "datasets/retain",
    "datasets/chats",
)
"""What a data folder may hold, by place."""


@dataclass(frozen=True)
class DataRoot:
    """The shipped data, with the user's own folder laid over it."""

    shipped: Path
    own: Path | None = None

    def find(self, folder: str, name: str, suffix: str, kind: str) -> Path:
        """The file `folder/name.suffix`; the user's own first. InputError with a suggestion for an unknown name."""
        known = self.names(folder, suffix)
        if name not in known:
            raise unknown(kind, name, known)
        return known[name]

    def names(self, folder: str, suffix: str) -> dict[str, Path]:
        """Every file of a kind by name; a name in the user's folder hides the shipped one."""
        roots = [self.shipped] + ([self.own] if self.own else [])
        return {p.name.removesuffix(suffix): p for root in roots for p in sorted((root / folder).glob(f"*{suffix}"))}

    @property
    def paper(self) -> Path:
        """The paper's figures."""
        return self.shipped / "results" / "paper" / "paper.json"


def data_root(own: Path | None = None) -> DataRoot:
    """The data root. `own` is `--data-dir`: a folder with `prompts/` and `datasets/` of the user's own.

    Raises:
        InputError: If `own` is not such a folder, or the installation lacks its data. The current folder is never
            guessed.
    """
    if own is not None:
        _check_own(own)
    package = Path(str(files("emeval")))
    for candidate in (package / "_data", package.parent):
        if (candidate / "prompts" / "probes").is_dir() and (candidate / "datasets").is_dir():
            return DataRoot(candidate, own)
    raise InputError("emeval's own data is missing from this installation", where=str(package), hint="Reinstall emeval")


def _check_own(own: Path) -> None:
    hint = "Give a folder with one of " + ", ".join(FOLDERS)
    if not own.is_dir():
        raise InputError("the data folder is not there", where=str(own), hint=hint)
    if not any((own / folder).is_dir() for folder in FOLDERS):
        raise InputError("not a data folder", where=str(own), hint=hint)
