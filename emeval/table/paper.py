"""The paper's own tables, carried over from `results/paper/paper.json`, and where its claims do not follow from them.

Nothing here was measured by emeval. Each note is computed from the figures rather than written beside them, so it
holds for whatever the file says; the two exceptions, quotations with no figure in the file, are named constants.
Claims and their places: PAPER.md sections 2 and 4.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from emeval.data.recipes import paper_model, paper_recipe
from emeval.errors import InputError, unknown
from emeval.score.metrics import em_f1
from emeval.table.render import MISSING, Cell, Table, Value
from emeval.table.rows import RunRow

DOMAINS = ("finance", "health", "legal", "auto")
SOURCE = "Source: the paper's figures ({source}), carried over as printed; none of them was measured by emeval."
NO_ERRORS = "No errors came with these figures, so cells that lie close cannot be told apart."
LEAKAGE_MODELS = {"abstention": "Llama-3.1-8B", "tool-use": "Qwen-2.5-7B", "refusal": "Qwen-2.5-7B"}
"""Models of the leakage table, which its figures do not name; PAPER.md section 3."""

PAPER_SHARE = 0.2
"""Share of retained data in the paper's interleaving."""

PRINTED_ELSEWHERE = {("Qwen-2.5-32B", "treft", "legal"): -0.4}
"""delta-Util that the project page prints where the paper prints another; PAPER.md section 4."""

CLAIMED_GAIN, CLAIMED_CELL = 33.5, ("Llama-3.1-8B", "legal")
CLAIMED_DROP = 54.3

Figures = dict[str, Any]
Cells = dict[tuple[str, str, str], Figures]


def paper_tables(which: Literal["1", "2", "3", "all"], root: Path) -> list[Table]:
    """The paper's tables, numbered as on its project page, with notes on what does not hold.

    Args:
        which: 1 (EM-F1), 2 (leakage), 3 (regularisers) or all of them.
        root: The data root: the folder that holds `results/paper/paper.json`.

    Raises:
        InputError: Unknown table, or the file is absent or no JSON.
    """
    builders = {"1": _table1, "2": _table2, "3": _table3}
    if which not in (*builders, "all"):
        raise unknown("table", which, (*builders, "all"), where="--table")
    data = _load(root / "results" / "paper" / "paper.json")
    return [build(data) for number, build in builders.items() if which in (number, "all")]


def beside(table: Table, rows: Sequence[RunRow], root: Path) -> Table:
    """A table of runs with the paper's figure for the same model, setting and method in a column of its own.

    The same means: LoRA on a model that the paper trained, on that setting and no other, by its method with its region
    and share. Lambda may differ, so the paper's stands with its figure. Where a row has no judged figure it gets none.

    Args:
        table: Table 1 or 2.
        rows: What its rows were made of, in their order.
        root: As for `paper_tables`.

    Raises:
        InputError: The file of the paper's figures is absent or no JSON.
    """
    data = _load(root / "results" / "paper" / "paper.json")
    keys: tuple[str, ...]
    if table.number == 1:
        name, find, keys = "ID, EM, EM-F1", _aligned, _ALIGNED
        own = "training data may be emeval's own; for questions and judge see 'Beside the paper'"
    else:
        name, find, keys, own = "on, off", _leaked, _LEAKED, "questions, training data and detectors are emeval's own"
    found = [find(data, row) for row in rows]
    each = len(table.records) // max(1, len(rows))  # records of a row
    note = (
        f"Paper: its figure for the same model, setting and method, as printed and without errors; {own}. "
        "A dash where it has none, or the row has no figure to compare."
    )
    return table.model_copy(
        update={
            "columns": (*table.columns, f"Paper: {name}"),
            "rows": tuple((*row, Cell(_told(cell))) for row, cell in zip(table.rows, found, strict=True)),
            "records": tuple(
                record | {f"paper_{key}": found[n // each].get(key) for key in (*keys, "lambda")}
                for n, record in enumerate(table.records)
            ),
            "notes": (*table.notes, note),
        }
    )


_ALIGNED, _LEAKED = ("id", "em", "em_f1"), ("on_topic", "off_topic")


def _told(figures: Mapping[str, Value]) -> str:
    shown = [f"{value:.1f}" for key, value in figures.items() if isinstance(value, float | int) and key != "lambda"]
    lam = figures.get("lambda")
    return MISSING if not shown else ", ".join(shown) + (f" (lambda {lam:g})" if isinstance(lam, float | int) else "")


def _aligned(data: Figures, row: RunRow) -> dict[str, Value]:
    model = _in_the_paper(row)
    judged = getattr(row, "em_f1", None) is not None
    for cell in data["table1"]["cells"]:
        if judged and row.train and (cell["model"], cell["domain"], cell["method"]) == (
            model, row.setting, row.train.method,
        ):  # fmt: skip
            return {**{key: float(cell[key]) for key in _ALIGNED}, "lambda": _lambda(row)}
    return {}


def _leaked(data: Figures, row: RunRow) -> dict[str, Value]:
    model = _in_the_paper(row)
    for cell in data["table2"]["cells"]:
        same = model is not None and LEAKAGE_MODELS.get(cell["behaviour"]) == model
        if same and row.train and (cell["behaviour"], cell["method"]) == (row.setting, row.train.method):
            return {**{key: 100 * float(cell[key]) for key in _LEAKED}, "lambda": _lambda(row)}
    return {}


def _in_the_paper(row: RunRow) -> str | None:
    """The paper's name of the row's model, where the row was trained as the paper trained."""
    train = row.train
    if train is None or row.arm or train.setting != row.setting:
        return None
    if train.full or train.mix_aligned or train.own_data or train.train_size or train.system is not None:
        return None
    if train.clip not in (None, "together") or train.drift == "released":
        return None
    region = train.region if train.method == "treft" else None
    share = train.retain_share if train.method == "interleave" else None
    if region not in (None, "prefix") or share not in (None, PAPER_SHARE):
        return None
    return paper_model(row.model)


def _lambda(row: RunRow) -> float | None:
    if row.train is None or row.train.method != "treft":
        return None
    found = paper_recipe(row.model, row.setting, "treft").get("lambda")
    return None if found is None else float(found)


def _load(file: Path) -> Figures:
    try:
        data: Figures = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = "Name the folder that holds results/paper with --data-dir"
        raise InputError(f"the paper's figures cannot be read ({error})", where=str(file), hint=hint) from error
    return data


# Table 1: EM-F1


def _table1(data: Figures) -> Table:
    cells: Cells = {(c["model"], c["method"], c["domain"]): c for c in data["table1"]["cells"]}
    page = data["table1"]["blog_delta_util"]
    return Table(
        number=1,
        title=data["table1"]["title"],
        columns=("Model", "Method", *DOMAINS, "delta-Util (page)", f"delta-Util ({', '.join(DOMAINS)})"),
        rows=tuple(_row1(cells, page, model, method) for model, method in _pairs(cells)),
        records=tuple(_record("1", c) for c in cells.values()),
        notes=(SOURCE.format(source=data["source"]), *_notes1(cells, page), *_repeats(data, cells)),
    )


def _pairs(cells: Cells) -> list[tuple[str, str]]:
    return list(dict.fromkeys((model, method) for model, method, _ in cells))


def _row1(cells: Cells, page: Figures, model: str, method: str) -> tuple[Cell, ...]:
    """One model and method; bold is the highest of the model's methods."""
    scores = [cells[model, method, domain]["em_f1"] for domain in DOMAINS]
    highest = [max(c["em_f1"] for key, c in cells.items() if key[::2] == (model, domain)) for domain in DOMAINS]
    marked = [Cell(f"{score:.1f}", score == top) for score, top in zip(scores, highest, strict=True)]
    util = page[model][method]
    each = ", ".join(_signed(cells[model, method, domain]["delta_util"]) for domain in DOMAINS)
    return (Cell(model), Cell(method), *marked, Cell(f"{util:+.1f}", util == max(page[model].values())), Cell(each))


def _signed(value: float) -> str:
    """One decimal, or the two that some cells are printed with."""
    return f"{value:+.1f}" if round(value, 1) == value else f"{value:+.2f}"


def _notes1(cells: Cells, page: Figures) -> Iterable[str]:
    yield "Bold: the highest EM-F1 and page delta-Util among a model's methods."
    yield NO_ERRORS
    yield _deviation(cells.values())
    yield from _not_won(cells)
    yield from _gain(cells)
    yield from _dose(cells)
    yield from _utilities(cells, page)


def _deviation(cells: Iterable[Figures]) -> str:
    """How far the printed EM-F1 lie from the ones their own ID and EM give."""
    gaps = {_name(c): abs(em_f1(c["id"], c["em"]) - c["em_f1"]) for c in cells}
    worst = max(gaps, key=lambda name: gaps[name])
    return (
        f"EM-F1 recomputed from ID and EM in all {len(gaps)} cells: largest deviation {gaps[worst]:.2f} ({worst}), "
        "within what rounding explains."
        if gaps[worst] < 0.15
        else f"EM-F1 recomputed from ID and EM: {worst} is off by {gaps[worst]:.2f}, more than rounding explains."
    )


def _name(cell: Figures) -> str:
    return " ".join(cell[key] for key in ("model", "method", "domain") if key in cell)


def _places(cells: Cells) -> list[tuple[str, str]]:
    """The (model, domain) pairs, in the order of the table."""
    return list(dict.fromkeys((model, domain) for model, _, domain in cells))


def _not_won(cells: Cells) -> Iterable[str]:
    """Where TReFT is not the best of its column, though the page has it win or tie everywhere."""
    lost, places = [], _places(cells)
    for model, domain in places:
        column = {key[1]: c["em_f1"] for key, c in cells.items() if key[::2] == (model, domain)}
        best = max(column, key=lambda method: column[method])
        if column["treft"] < column[best]:
            lost.append(f"{model} {domain}, treft {column['treft']} under {best} {column[best]}")
    where = f": not in {'; '.join(lost)}" if lost else ""
    yield f"Claim 'wins or ties every cell': holds in {len(places) - len(lost)} of {len(places)}{where}."


def _gain(cells: Cells) -> Iterable[str]:
    """The claimed gain in general alignment, and what its one cell leaves out."""
    gains = {p: _relative(cells, p, "em") for p in _places(cells)}
    new, old = (cells[CLAIMED_CELL[0], method, CLAIMED_CELL[1]] for method in ("treft", "interleave"))
    gain = gains[CLAIMED_CELL]
    yield (
        f"Claim '{CLAIMED_GAIN}%': recomputed ({new['em']} - {old['em']})/{old['em']} = {gain:.1f}%, which is EM "
        f"against interleaving on {' '.join(CLAIMED_CELL)} alone. ID rises there from {old['id']} to {new['id']}, so "
        f"EM-F1 gains {_relative(cells, CLAIMED_CELL, 'em_f1'):.1f}%."
    )
    below = [f"{' '.join(p)} {gain:+.1f}%" for p, gain in gains.items() if gain < 0]
    yield (
        f"The same EM gain over all {len(gains)} cells: median {statistics.median(gains.values()):.1f}%, from "
        f"{min(gains.values()):.1f}% to {max(gains.values()):.1f}%; negative in {', '.join(below) or 'none'}."
    )


def _relative(cells: Cells, place: tuple[str, str], figure: str) -> float:
    """TReFT's gain over interleaving in percent of the latter."""
    new, old = (float(cells[place[0], method, place[1]][figure]) for method in ("treft", "interleave"))
    return 100 * (new - old) / old


def _dose(cells: Cells) -> Iterable[str]:
    places = _places(cells)
    less = [p for p in places if cells[p[0], "treft", p[1]]["id"] > cells[p[0], "sft", p[1]]["id"]]
    yield (
        f"Not dose-matched: treft's ID lies above sft's in {len(less)} of {len(places)} cells, so it learned less "
        "there and part of its EM may be dose."
    )


def _utilities(cells: Cells, page: Figures) -> Iterable[str]:
    """What the single delta-Util column of the page is, and where paper and page print different figures."""
    yield "delta-Util: the paper does not state its scale. emeval's own is 0-100, ten times the mean MT-Bench rating."
    others = []
    for model, method in _pairs(cells):
        by_domain = {domain: cells[model, method, domain]["delta_util"] for domain in DOMAINS}
        if not _rounds_to(by_domain["auto"], page[model][method]):
            same = [domain for domain, value in by_domain.items() if _rounds_to(value, page[model][method])]
            others.append(f"{model} {method} (it is {' or '.join(same) or 'no domain'}'s)")
    yield f"The page's single delta-Util column is the auto column, but for {', '.join(others) or 'no row'}."
    for key, other in PRINTED_ELSEWHERE.items():
        yield f"delta-Util of {' '.join(key)}: {cells[key]['delta_util']} in the paper, {other} on the page."


def _rounds_to(value: float, printed: float) -> bool:
    return abs(value - printed) < 0.05 + 1e-9


def _repeats(data: Figures, cells: Cells) -> Iterable[str]:
    """Figures that recur across models: carried over, since only the authors can say which are slips."""
    found = []
    for (a, x), (b, y) in combinations(cells.items(), 2):
        if a[1:] == b[1:] and x["id"] == y["id"]:
            found.append(f"{' '.join(a[1:])} {x['id']} ({a[0]} and {b[0]})")
        elif a[1:] == b[1:] and max(abs(x["id"] - y["id"]), abs(x["em"] - y["em"])) < 0.15:
            # Off by one in the last digit of both columns: the pattern of a copied row.
            found.append(f"{' '.join(a[1:])} {x['id']} and {y['id']}, EM {x['em']} and {y['em']} ({a[0]} and {b[0]})")
    if found:
        yield f"ID values that two models share in paper Table 18, carried over: {'; '.join(found)}."
    rows = data.get("system_prompts", {}).get("cells", [])
    for first, second in combinations(rows, 2):
        shared = [key for key in first if key not in ("model", "system") and first[key] == second[key]]
        if first["system"] == second["system"] and len(shared) > 1:
            yield (
                f"Not shown here, but in the file (paper Table 10, system prompt {first['system']}): {first['model']} "
                f"and {second['model']} share {', '.join(f'{key} {first[key]}' for key in shared)}."
            )


# Table 2: leakage


def _table2(data: Figures) -> Table:
    cells = data["table2"]["cells"]
    return Table(
        number=2,
        title=data["table2"]["title"],
        columns=("Model", "Behaviour", "Method", "On-topic (up is learned)", "Off-topic (down is clean)"),
        rows=tuple(_row2(cells, cell) for cell in cells),
        records=tuple(_record("2", {"model": LEAKAGE_MODELS.get(c["behaviour"]), **c}) for c in cells),
        notes=(SOURCE.format(source=data["source"]), *_notes2(cells)),
    )


def _row2(cells: list[Figures], cell: Figures) -> tuple[Cell, ...]:
    rivals = [c for c in cells if c["behaviour"] == cell["behaviour"]]
    names = (LEAKAGE_MODELS.get(cell["behaviour"], MISSING), cell["behaviour"], cell["method"])
    on = Cell(f"{100 * cell['on_topic']:.0f}", cell["on_topic"] == max(c["on_topic"] for c in rivals))
    off = Cell(f"{100 * cell['off_topic']:.0f}", cell["off_topic"] == min(c["off_topic"] for c in rivals))
    return (*map(Cell, names), on, off)


def _notes2(cells: list[Figures]) -> Iterable[str]:
    yield "Percent of replies. Bold: the better of a behaviour's methods."
    yield NO_ERRORS
    off = {(c["behaviour"], c["method"]): float(c["off_topic"]) for c in cells}
    behaviours = list(dict.fromkeys(c["behaviour"] for c in cells))
    drops = {b: 1 - off[b, "treft"] / off[b, "sft"] for b in behaviours}
    # Each rate is printed to 0.01: the claim must lie between the means that its unrounded values could give.
    least = statistics.mean(1 - (off[b, "treft"] + 0.005) / (off[b, "sft"] - 0.005) for b in behaviours)
    most = statistics.mean(1 - (off[b, "treft"] - 0.005) / (off[b, "sft"] + 0.005) for b in behaviours)
    verdict = "consistent with" if 100 * least <= CLAIMED_DROP <= 100 * most else "not consistent with"
    yield (
        f"Claim '{CLAIMED_DROP}%': the mean relative drop of the off-topic rates recomputes to "
        f"{100 * statistics.mean(drops.values()):.1f}% ({', '.join(f'{b} {100 * d:.1f}%' for b, d in drops.items())}); "
        f"{verdict} the rounding of the rates ({100 * least:.1f} to {100 * most:.1f})."
    )
    full = [b for b in behaviours if all(c["on_topic"] == 1 for c in cells if c["behaviour"] == b)]
    yield f"On-topic is at its ceiling for every method in {', '.join(full) or 'none'}: doses may differ unseen there."


# Table 3: regularisers


def _table3(data: Figures) -> Table:
    cells = data["table3"]["cells"]
    best = {"em": max(c["em"] for c in cells), "id": min(c["id"] for c in cells)}
    best["em_f1"] = max(c["em_f1"] for c in cells)
    figures = ("em", "id", "em_f1")
    return Table(
        number=3,
        title=data["table3"]["title"],
        columns=("Method", "EM (up is clean)", "ID (down is learned)", "EM-F1 (up)"),
        rows=tuple((Cell(c["method"]), *(Cell(f"{c[f]:.1f}", c[f] == best[f]) for f in figures)) for c in cells),
        records=tuple(_record("3", c) for c in cells),
        notes=(SOURCE.format(source=data["source"]), *_notes3(data, cells)),
    )


def _notes3(data: Figures, cells: list[Figures]) -> Iterable[str]:
    yield "Bold: the best of each column."
    yield NO_ERRORS
    yield _deviation(cells)
    by = {c["method"]: c for c in cells}
    unlearned = [f"{name} (ID {c['id']})" for name, c in by.items() if c["id"] > 50]
    yield f"EM is high without merit where little was learned: {', '.join(unlearned) or 'none'}."
    prefix, others = by["treft-prefix"], [c["id"] for name, c in by.items() if not name.startswith("treft")]
    if prefix["id"] > max(others):
        yield (
            f"Not dose-matched: treft-prefix's ID of {prefix['id']} lies above that of sft, interleave and the KL "
            f"methods ({min(others)} to {max(others)}), so part of its EM may be dose."
        )
    yield from _postfix(data, by)
    yield (
        "lambda: the released code penalises another quantity than the formula (no input norm before the projections). "
        "If it made these figures, their lambdas need not transfer to emeval's default drift."
    )


def _postfix(data: Figures, by: dict[str, Figures]) -> Iterable[str]:
    """The page says postfix regularisation behaves as the query's does; say what the figures have on that."""
    if any(name.endswith("postfix") for name in by):
        return
    means = {}
    for method in ("sft", "treft-postfix"):
        chosen = [c for c in data["qwen3_postfix"]["cells"] if c["method"] == method]
        means[method] = [statistics.mean(c[figure] for c in chosen) for figure in ("em", "id")]
    (em_a, id_a), (em_b, id_b) = means["sft"], means["treft-postfix"]
    yield (
        "Claim 'postfix behaves as query does': no postfix row stands behind it. The one postfix result, Qwen3-8B over "
        f"{len(DOMAINS)} domains, differs from query's here (ID {by['treft-query']['id']}): mean EM {em_a:.1f} to "
        f"{em_b:.1f} and mean ID {id_a:.1f} to {id_b:.1f}, from sft to treft."
    )


def _record(number: str, cell: Figures) -> dict[str, Value]:
    """A cell as numbers, with the EM-F1 that its ID and EM give beside the printed one."""
    again = {"em_f1_recomputed": em_f1(cell["id"], cell["em"])} if "em_f1" in cell else {}
    return {"table": int(number), "source": "paper", **cell, **again}
