"""Tables as markdown, csv, json or latex, from one structure that our own rows and the paper's figures share.

Every text of a table passes `clean` here, whatever the format: run names, model ids and judge names come from files
and must not reach a terminal or a page as control codes or markup.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from emeval.errors import unknown
from emeval.score.stats import over_seeds
from emeval.table.rows import OFF_TOPIC, ON_TOPIC, Row, counterparts, labels_of, on_topic_gap, paired, unplain
from emeval.types import SCHEMA_VERSION, Estimate, ProbeScore, Record

MISSING = "–"
DOSE_POINTS = 5.0
"""On-topic rates further apart than this, in points, are another dose whatever the interval says (DESIGN 8)."""

INTERVALS = {
    "wilson": "Wilson",
    "t": "t",
    "t-clustered": "t, errors clustered by question",
    "bootstrap": "bootstrap over questions",
}
SCORE_FIELDS = (
    "split", "judge", "rate", "low", "high", "confidence", "interval", "n", "asked", "scored", "coverage", "truncated",
    "refusal", "code", "parse_error", "api_error", "missing", "foreign_prefix",
)  # fmt: skip
Value = str | int | float | None

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", MISSING: "--", "[": "{[}", "]": "{]}", '"': r"\textquotedbl{}",
} | {char: f"\\{char}" for char in "&%$#_{}"}  # fmt: skip


class Cell(NamedTuple):
    """A table cell as people read it; `best` puts it in bold."""

    text: str
    best: bool = False


class Table(Record):
    """One table: `rows` is what markdown and latex print, `records` the same figures as numbers for csv and json."""

    number: int | None = None
    """As in the paper; None for a table that is none of its."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    records: tuple[dict[str, Value], ...]
    notes: tuple[str, ...]


def clean(text: str) -> str:
    """Text from a run or a model as one harmless line: no terminal sequences, control or invisible characters."""
    visible = _ANSI.sub("", text)
    spaced = "".join(" " if char.isspace() else char for char in visible)
    return " ".join("".join(char for char in spaced if unicodedata.category(char)[0] != "C").split())


def render(tables: Sequence[Table], fmt: str = "markdown") -> str:
    """The tables as text: `markdown`, `csv`, `json` or `latex`.

    csv holds the records of all tables in one frame, notes left out; json is one object, with the tables under
    `tables` where there are several.

    Raises:
        InputError: Unknown format.
    """
    formats: dict[str, Callable[[Sequence[Table]], str]] = {
        "markdown": lambda all_: "\n\n".join(map(_markdown, all_)),
        "csv": _csv,
        "json": _json,
        "latex": lambda all_: "\n\n".join(map(_latex, all_)),
    }
    if fmt not in formats:
        raise unknown("format", fmt, formats, where="--format")
    return formats[fmt](tables)


def leakage_table(rows: Sequence[Row]) -> Table:
    """Table 2: how often the narrow behaviour appears on its topic and off it, in percent with intervals."""
    labels = labels_of(rows)
    columns = (
        "Model", "Behaviour", "Method", "On-topic (up is learned)", "Off-topic (down is clean)", "n", "outcomes",
    )  # fmt: skip
    return Table(
        number=2,
        title="Appearance rate of narrow behaviours, percent",
        columns=columns,
        rows=tuple(_cells(row, label) for row, label in zip(rows, labels, strict=True)),
        records=tuple(_record(row, probe) for row in rows for probe in (ON_TOPIC, OFF_TOPIC)),
        notes=tuple(_notes(rows, labels)),
    )


# What a row says


def _cells(row: Row, label: str) -> tuple[Cell, ...]:
    probes = (row.on_topic, row.off_topic)
    asked = ", ".join(f"{name} {_scored(score)}" for name, score in zip(("on", "off"), probes, strict=True))
    rates = [_rate(score) for score in probes]
    return tuple(Cell(text) for text in (row.model, row.setting, label, *rates, asked, _outcomes(row)))


def _rate(score: ProbeScore | None) -> str:
    if score is None or score.rate.value is None:
        return MISSING
    split = "" if score.split == "test" else f" ({score.split})"
    return _percent(score.rate) + split


def estimate_text(found: Estimate | None, digits: int = 1, sign: bool = False) -> str:
    """`12.3 [10.1, 14.5]` as it is, no percent made of it; a dash for nothing, no brackets where no error is known."""
    if found is None or found.value is None:
        return MISSING
    plus = "+" if sign else ""
    value = f"{found.value + 0.0:{plus}.{digits}f}"
    if found.low is None or found.high is None:
        return value
    return f"{value} [{found.low + 0.0:{plus}.{digits}f}, {found.high + 0.0:{plus}.{digits}f}]"


def _percent(estimate: Estimate, digits: int = 1) -> str:
    """`97.5 [87.1, 99.6]` from shares; a dash where nothing was measured, no brackets where no error is known."""
    if estimate.value is None:
        return MISSING
    # Adding 0.0 turns the -0.0 that a difference can round to into 0.0.
    value = f"{round(100 * estimate.value, digits) + 0.0:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value
    low, high = (round(100 * bound, digits) + 0.0 for bound in (estimate.low, estimate.high))
    return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


def _scored(score: ProbeScore | None) -> str:
    return f"{score.outcomes.get('scored', 0)}/{score.expected}" if score else MISSING


def _outcomes(row: Row) -> str:
    parts = []
    for name, score in (("on", row.on_topic), ("off", row.off_topic)):
        counts = [f"{n} {what}" for what, n in unplain(score).items() if n] if score else ["not scored"]
        parts += [f"{name}: {', '.join(counts)}"] if counts else []
    return "; ".join(parts) or "all scored"


def _record(row: Row, probe: str) -> dict[str, Value]:
    """One run and probe as numbers, rates as shares; what was not measured is None, never 0."""
    score, train = row.score(probe), row.train
    names: dict[str, Value] = {"model": row.model, "setting": row.setting, "method": row.method, "run": row.run}
    trained = {"lambda": train.lam if train else None, "seed": row.seed, "steps": train.steps if train else None}
    about: dict[str, Value] = {"engine": row.engine, "marks": "; ".join(row.marks), "probe": probe}
    numbers = _numbers(score) if score else dict.fromkeys(SCORE_FIELDS)
    return {"table": 2, **names, **trained, **about, **numbers}


def _numbers(score: ProbeScore) -> dict[str, Value]:
    rate = score.rate
    level = rate.confidence if rate.low is not None else None
    figures = (score.split, score.judge, rate.value, rate.low, rate.high, level, rate.method, rate.n)
    counts = (score.expected, score.outcomes.get("scored", 0), score.coverage, *unplain(score).values())
    return dict(zip(SCORE_FIELDS, (*figures, *counts), strict=True))


# What stands under the table


def _notes(rows: Sequence[Row], labels: Sequence[str]) -> Iterable[str]:
    scores = [score for row in rows for score in (row.on_topic, row.off_topic) if score]
    if not scores:
        yield "No scored runs."
        return
    yield from _reading(scores)
    label = {id(row): text for row, text in zip(rows, labels, strict=True)}
    for row in rows:
        if row.marks:
            yield f"{row.model}, {row.setting}, {label[id(row)]}: {'; '.join(row.marks)}."
    for first, second in counterparts(rows):
        name = f"{first.model}, {first.setting}, {label[id(first)]} minus {label[id(second)]}"
        yield from _difference(name, first, second)
    yield from _seeds(rows)


def _reading(scores: Sequence[ProbeScore]) -> Iterable[str]:
    """What the brackets, the splits and the judges are."""
    rates = [score.rate for score in scores if score.rate.low is not None]
    kinds = sorted({f"{100 * rate.confidence:g}% {INTERVALS.get(rate.method, rate.method)}" for rate in rates})
    yield f"Brackets: {'; '.join(kinds) or 'none could be computed'}."
    yield "n: scored replies of those asked, on-topic and off-topic."
    splits = sorted({s.split for s in scores})
    if splits == ["test"]:
        yield "Split: test."
    else:
        marked = ", ".join(f"({split})" for split in splits if split != "test")
        yield f"Warning: rates marked {marked} are not from the test split; val is for choosing steps and lambda."
    yield f"Judge: {', '.join(sorted({s.judge for s in scores}))}."


def _difference(name: str, first: Row, second: Row) -> Iterable[str]:
    off, on = paired(first, second, OFF_TOPIC), paired(first, second, ON_TOPIC)
    if off is None:
        yield f"{name}, off-topic: not compared, the two runs share no question scored alike (split, judge)."
    else:
        yield f"{name}, off-topic: {_points(off)}{_asked(first, second, off)}{_verdict(off)}."
    gap = on_topic_gap(first, second)
    excludes = on is not None and on.low is not None and on.high is not None and not on.low <= 0 <= on.high
    if gap is not None and (excludes or abs(round(100 * gap, 6)) > DOSE_POINTS):
        shown = _points(on) if on else f"{100 * gap:+.1f} points"
        yield (
            f"{name}, on-topic: {shown}. What learns less leaks less, so these end-of-run rows are not a fair "
            "comparison: compare them at the same on-topic rate."
        )


def _points(difference: Estimate) -> str:
    """The difference in points; an interval without width says nothing and is replaced by why."""
    if difference.low is None:
        return f"{_percent(difference)} points, no interval from one question"
    if difference.low == difference.high:
        return f"{_percent(difference.model_copy(update={'low': None}))} points on every question"
    return f"{_percent(difference)} points"


def _asked(first: Row, second: Row, difference: Estimate) -> str:
    a, b = first.flags(OFF_TOPIC).keys(), second.flags(OFF_TOPIC).keys()
    only = "" if a == b else f" that both answered (of {len(a)} and {len(b)})"
    return f", paired on {difference.n} question{'s' if difference.n != 1 else ''}{only}"


def _verdict(difference: Estimate) -> str:
    if difference.low is None or difference.high is None:
        return ""
    return ", within noise" if difference.low <= 0 <= difference.high else ""


def _seeds(rows: Sequence[Row]) -> Iterable[str]:
    """Runs that differ in their seed alone, summed up as mean and range; never as one large sample."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.setting, row.method), []).append(row)
    for key, members in groups.items():
        if len({row.seed for row in members}) < len(members) or len(members) < 2:
            continue
        parts = []
        for probe in (ON_TOPIC, OFF_TOPIC):
            found = over_seeds(score.rate for row in members if (score := row.score(probe)))
            parts.append(f"{probe} {_percent(found)}")
        yield f"{', '.join(key)}: mean and range over {len(members)} seeds: {', '.join(parts)}."


# The four formats


def _markdown(table: Table) -> str:
    body = [[f"**{_escaped(c.text)}**" if c.best else _escaped(c.text) for c in row] for row in table.rows]
    grid = [[_escaped(column) for column in table.columns], *body]
    widths = [max(3, *(len(row[i]) for row in grid)) for i in range(len(table.columns))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in grid]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    notes = [f"- {_escaped(note)}" for note in table.notes]
    number = "" if table.number is None else f"Table {table.number}. "
    return "\n".join([f"**{number}{_escaped(table.title)}**", "", *lines, "", *notes])


def _escaped(text: str) -> str:
    """Clean text without markdown's power to end a cell, open a tag, a link or a code span."""
    return re.sub(r"([\\|<`*]|(?<=\])\()", r"\\\1", clean(text))


def _latex(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return " & ".join(cells) + r" \\"

    body = [line(f"\\textbf{{{_tex(c.text)}}}" if c.best else _tex(c.text) for c in row) for row in table.rows]
    notes = [f"\\par\\footnotesize {_tex(note)}" for note in table.notes]
    head = [r"\begin{table}", r"\centering", f"\\caption{{{_tex(table.title)}}}"]
    head += [f"\\begin{{tabular}}{{{'l' * len(table.columns)}}}", r"\toprule"]
    head += [line(map(_tex, table.columns)), r"\midrule"]
    return "\n".join([*head, *body, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}"])


def _tex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in clean(text))


def _csv(tables: Sequence[Table]) -> str:
    import pandas as pd

    records = [{key: _inert(value) for key, value in record.items()} for table in tables for record in table.records]
    # dtype object keeps whole numbers whole beside empty fields.
    return pd.DataFrame(records, dtype=object).to_csv(index=False)


def _inert(value: Value) -> Value:
    """A text that a spreadsheet would run as a formula gets the apostrophe that makes it a text."""
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _json(tables: Sequence[Table]) -> str:
    objects = [
        {"table": t.number, "rows": [_plain(record) for record in t.records], "notes": [clean(n) for n in t.notes]}
        for t in tables
    ]
    whole = objects[0] if len(objects) == 1 else {"tables": objects}
    return json.dumps({"schema_version": SCHEMA_VERSION, **whole}, ensure_ascii=False, allow_nan=False, indent=2)


def _plain(record: dict[str, Value]) -> dict[str, Value]:
    return {key: clean(value) if isinstance(value, str) else value for key, value in record.items()}
