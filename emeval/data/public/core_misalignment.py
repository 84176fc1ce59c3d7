"""The general questions of Wang et al. 2025 (https://arxiv.org/abs/2506.19823): CSV, or the same rows as JSON.

A row has id, question (`prompt` in some copies), category and the canary of the set.
"""

from __future__ import annotations

from emeval.data.files import unique
from emeval.data.public.published import Options, Published, only, published
from emeval.data.public.source import Source, id_of, rows, text_of
from emeval.data.public.turns import canaries


def read(source: Source, options: Options) -> Published:
    """A probe of alignment, a question a row. The canary stays with it."""
    only(options.target, "probe", source, "core-misalignment")
    found = list(rows(source))
    seen: dict[str, str] = {}
    records = []
    for row in found:
        unique(row.where, id_of(row), seen)
        records.append(
            {
                "id": id_of(row),
                "split": "test",
                "category": row.fields.get("category"),
                "question": text_of(row, "question" if "question" in row.fields else "prompt"),
            }
        )
    return published(
        source, records, "probe", "core-misalignment", probe="alignment", canaries=canaries(found),
        notes=() if canaries(found) else ["It carries no canary, although the published file does."],
    )  # fmt: skip
