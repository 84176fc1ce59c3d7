"""Judging what has no run of emeval behind it: another tool's replies, and the items that qualify a judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emeval.config import JudgeConfig
from emeval.data.root import data_root
from emeval.data.settings import Setting
from emeval.errors import IncompleteError, InputError
from emeval.judge.cost import Bill
from emeval.judge.foreign import PROBE, kept_scores, load_responses
from emeval.judge.llm import LlmJudge
from emeval.judge.panel import Call, Panel, conversations
from emeval.judge.qualify import FOLDER, Qualification, as_item, keep, load_items, qualify
from emeval.judge.tally import Probed, counted, counting, score_all
from emeval.pipeline import check_coverage, judge_estimate, write_scores
from emeval.provenance import facts, now
from emeval.store import Jsonl, Run, read_json, sha256_file, slug
from emeval.types import SCHEMA_VERSION, Completion, OnCount, OtherJudge, Say

_FOREIGN = Setting(name="responses", topic="responses")


def judge_responses(
    config: JudgeConfig, on_judged: OnCount = lambda done, total: None, say: Say = lambda text: None
) -> Path:
    """Judge the rows of a file, or count the scores it brings along. Returns the run folder they are kept in.

    Raises:
        InputError: For a bad row, no judge and no scores, or a folder that holds something else.
        IncompleteError: If coverage ends below `min_coverage`.
    """
    assert config.responses is not None  # the command asks for it
    rows = load_responses(config.responses)
    kept = kept_scores(config.responses, rows, "aligned") if config.keep_scores else []
    if config.keep_scores and not kept:
        where = str(config.responses)
        raise InputError("has no column 'aligned'", where=where, hint="Leave --keep-scores out to judge")
    if not config.keep_scores and config.judge in (None, "none"):
        raise InputError("no judge is named", where="--judge", hint="Give --judge MODEL, or --keep-scores")
    run = _run_of(config)
    before = run.manifest()
    sha = (before.get("responses") or {}).get("sha256", sha256_file(config.responses))
    if before.get("train") or before.get("score") or sha != sha256_file(config.responses):
        raise InputError("holds something else", where=str(run.path), hint="Choose another folder with --out")
    panel = Panel(config, data_root(config.data_dir), run, say)
    if not kept:
        panel.check("alignment", PROBE)
    completions = [completion for completion, _ in rows]
    probed = Probed(PROBE, "alignment", "test", _FOREIGN, {}, len(rows), completions)
    with run.locked():
        run.update_manifest(responses=_section(config, len(rows)))
        _store(run, completions)
        if kept:
            by_role = {"main": kept, "coherence": kept_scores(config.responses, rows, "coherent")}
            scored = counted(probed, by_role, {"main": OtherJudge(judge=kept[0].judge, asked=len(kept), outcomes={})})
        else:
            (scored,) = score_all([probed], panel, on_judged)  # there is a judge
        head = {
            "schema_version": SCHEMA_VERSION,
            "setting": _FOREIGN.name,
            "model": {"id": config.responses.name},
            "engine": "none",
            "token_prompts": False,
        }
        write_scores(run, (read_json(run.scores_path) if run.scores_path.exists() else {}) | head, [scored])
    check_coverage([scored], config.min_coverage, run, None, panel)
    return run.path


def _section(config: JudgeConfig, rows: int) -> dict[str, Any]:
    assert config.responses is not None
    return {
        "file": config.responses.name,
        "sha256": sha256_file(config.responses),
        "rows": rows,
        "judge": config.judge,
        "kept_scores": config.keep_scores,
        "started": now(),
        **facts(),
    }


def _store(run: Run, completions: list[Completion]) -> None:
    file = Jsonl(run.completions_path, Completion)
    stored = {completion.key for completion in file.read()}
    for completion in completions:
        if completion.key not in stored:
            file.append(completion)
    file.close()


def check_judge(
    config: JudgeConfig, on_judged: OnCount = lambda done, total: None, say: Say = lambda text: None
) -> Qualification:
    """Qualify the judge on the known items, and keep what came out in results/judges/.

    Raises:
        InputError: If no judge is named.
        IncompleteError: If the judge did not answer every item; nothing is kept then.
    """
    if config.judge in (None, "none"):
        raise InputError("no judge is named", where="--judge", hint="Give --judge MODEL or vllm:PATH")
    root = data_root(config.data_dir)
    items = load_items(root)
    folder = Run(FOLDER / "calls")
    with folder.locked():
        panel = Panel(config, root, folder, say)
        panel.check("alignment", "judge check")
        judge = LlmJudge(panel.server(started=False), panel.prompt("alignment"), panel.budget, say)
        call = Call("main", judge, [as_item(item) for item in items])
        try:
            found = panel.judge_all(call, counting(panel.to_do([call]), on_judged))
        finally:
            panel.close()
    lost = len(items) - sum(j.outcome != "api-error" for j in found)
    if lost:
        hint = "Raise --max-cost and run it again" if panel.budget.exhausted else "Run the same command again"
        raise IncompleteError(f"{lost} of {len(items)} items got no answer", where=judge.id, hint=hint)
    outcome = qualify(judge.id, items, found)
    keep(outcome)
    return outcome


def estimate(config: JudgeConfig, *, check: bool = False) -> Bill:
    """What `emeval judge` (or, with `check`, `emeval judge check`) would cost at most. Writes nothing.

    Raises:
        InputError: If there is nothing to estimate.
    """
    if config.judge in (None, "none"):
        raise InputError("there is nothing to estimate without a judge model", where="--dry-run", hint="Give --judge")
    root = data_root(config.data_dir)
    if check or config.responses:
        run = Run(FOLDER / "calls") if check else _run_of(config)
        panel = Panel(config, root, run)
        if check:
            items = [as_item(item) for item in load_items(root)]
        else:
            items = conversations({}, [c for c, _ in load_responses(config.responses)]) if config.responses else []
        judge = LlmJudge(panel.server(started=False), panel.prompt("alignment"), panel.budget)
        return panel.estimate([Call("main", judge, items)])
    return judge_estimate(config)


def _run_of(config: JudgeConfig) -> Run:
    assert config.responses is not None  # asked before
    return Run(config.out or Path("results") / "runs" / slug(config.responses.stem))
