"""Which judges a probe's replies meet, and opening them: the one place that knows what each needs.

A local judge (`--judge vllm:PATH`) is served by vLLM, started when the first reply needs it and gone at `close`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emeval import models
from emeval.config import JudgeOptions
from emeval.data.files import validated
from emeval.data.root import DataRoot
from emeval.data.settings import Setting
from emeval.engine.choose import vllm_python
from emeval.errors import InputError
from emeval.judge.cost import Bill, Price, bill, estimate, load_prices
from emeval.judge.dialect import REASONING_ROOM
from emeval.judge.llm import Budget, JudgeServer, LlmJudge
from emeval.judge.prompt import JudgePrompt, MtBenchPrompts, Turn, load_judge_prompt, load_judge_prompt_file
from emeval.judge.run import Item, Judge, RuleJudge, WordCount, judgements_of
from emeval.store import Run
from emeval.types import Completion, Judgement, Question, Say

Role = Literal["main", "coherence", "second"]
OPENAI = "https://api.openai.com/v1"
PROMPT_OF = {"alignment": "alignment", "mt-bench": "rating"}
"""The judge prompt of the kinds that need a judge model."""


@dataclass
class Call:
    """One judge's part in a probe."""

    role: Role
    judge: Judge
    items: list[Item]


class Panel:
    """The judges of one scoring.

    Args:
        options: The judge's settings.
        root: Where prompts and prices lie.
        run: Holds the judgements (what this judge's earlier calls cost counts towards the limit) and its server's log.
        say: Told what a user should know.

    Raises:
        InputError: For an unknown prompt, or a cost limit without a known price.
    """

    def __init__(
        self,
        options: JudgeOptions,
        root: DataRoot,
        run: Run,
        say: Say = lambda text: None,
    ) -> None:
        self.options, self.root, self.run = options, root, run
        self.file = judgements_of(run)
        self._say, self._said = say, set[str]()
        self._server: JudgeServer | None = None
        self._local: models.ModelSource | None = None
        self._engine: object | None = None
        if options.judge and options.judge.startswith("vllm:"):
            self._local = models.resolve(options.judge.removeprefix("vllm:"))
            if vllm_python(options.vllm) is None:
                raise InputError(
                    "a local judge needs vLLM", where="--judge", hint="Run: make vllm, or give --vllm PYTHON"
                )
        if self.has_model:
            for kind in PROMPT_OF:
                self.prompt(kind)  # a name or file that is none is told before anything is asked
        price = self._price()
        self.budget = Budget(price, options.max_cost, self._spent(price) if options.max_cost else 0.0)

    @property
    def has_model(self) -> bool:
        """Whether a judge model was named."""
        return self.options.judge not in (None, "none")

    def check(self, kind: str, probe: str) -> None:
        """InputError if a probe of this kind cannot be judged with what was given."""
        if kind in PROMPT_OF and self.options.judge is None:
            raise InputError(
                f"the probe '{probe}' needs a judge model",
                where="--judge",
                hint="Give --judge MODEL or vllm:PATH, or --judge none to store the replies only",
            )
        if kind in PROMPT_OF and self.has_model:
            self.prompt(kind)
            self.server(started=False).check()

    def say(self, text: str) -> None:
        """Tell it, once."""
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    def calls(
        self,
        kind: str,
        setting: Setting,
        questions: Mapping[str, Question],
        completions: Sequence[Completion],
    ) -> list[Call]:
        """Who judges these replies."""
        if kind == "behaviour":
            judge = RuleJudge(setting.needed_behaviour("a behaviour probe"))
            return [Call("main", judge, [Item(c) for c in completions])]
        if kind == "brevity":
            return [Call("main", WordCount(), [Item(c) for c in completions])]
        if not self.has_model or kind not in PROMPT_OF:
            return []
        items = conversations(questions, completions)
        found = [Call("main", self._judge(self.prompt(kind)), items)]
        if kind == "alignment" and self.options.coherence:
            found.append(Call("coherence", self._judge(load_judge_prompt(self.root, "coherence")), items))
        return found

    def second_look(
        self, kind: str, setting: Setting, questions: Mapping[str, Question], completions: Sequence[Completion]
    ) -> list[Call]:
        """Who looks again at replies in which the rules saw no behaviour."""
        known = kind == "behaviour" and self.has_model and setting.name in self.root.names("prompts/judges", ".md")
        if not known:
            return []
        judge = self._judge(load_judge_prompt(self.root, setting.name))
        return [Call("second", judge, conversations(questions, completions))]

    def prompt(self, kind: str) -> JudgePrompt | MtBenchPrompts:
        """The judge prompt of a kind: the one that its option names, else the kind's own."""
        option, given, scale = {
            "alignment": ("--judge-prompt", self.options.judge_prompt, "0-100"),
            "mt-bench": ("--rating-prompt", self.options.rating_prompt, "rating"),
        }[kind]
        if given is None:
            return load_judge_prompt(self.root, PROMPT_OF[kind])
        found: JudgePrompt | MtBenchPrompts
        if given.endswith(".md"):
            found = load_judge_prompt_file(Path(given))
        elif given.endswith(".jsonl"):
            found = mt_bench_prompts(Path(given))
        else:
            found = published_prompt(given) if "#" in given else load_judge_prompt(self.root, given)
        if found.scale != scale:
            what = f"'{found.name}' judges by {found.scale}, and {kind} is judged by {scale}"
            raise InputError(what, where=option, hint="Name another prompt")
        return found

    def _judge(self, prompt: JudgePrompt | MtBenchPrompts) -> LlmJudge:
        return LlmJudge(self.server(started=False), prompt, self.budget, self.say)

    def judge_all(self, call: Call, on_judged: Callable[[], None]) -> list[Judgement]:
        """The judgements of one call; a local judge is started if any of them has to be made."""
        if self._local and self.unjudged(call):
            assert isinstance(call.judge, LlmJudge)  # others leave nothing to a model
            call.judge.server = self.server(started=True)
        return call.judge.judge_all(call.items, self.file, on_judged)

    def unjudged(self, call: Call) -> list[Item]:
        """The items of a call that the judge model has still to be asked about."""
        return call.judge.unjudged(call.items, self.file) if isinstance(call.judge, LlmJudge) else []

    def server(self, *, started: bool) -> JudgeServer:
        """Where the judge model is; a local one is started if `started`."""
        options = self.options
        assert options.judge is not None  # has_model was asked
        plain = {"mode": options.judge_mode, "concurrency": options.judge_concurrency, "batch": options.judge_batch}
        if self._local is None:
            return JudgeServer(options.judge, options.judge_url or OPENAI, options.judge_key_env, **plain)  # type: ignore[arg-type]
        name = f"{self._local.name}@{self._local.weights_id()[:8]}"
        if not started:
            return JudgeServer(name, "http://127.0.0.1:9", name=name, **plain)  # type: ignore[arg-type]
        if self._server is None:
            from emeval.engine.vllm import VllmEngine

            self.say(f"Starting the judge {name} with vLLM")
            engine = VllmEngine(
                self._local.base,
                adapter=self._local.adapter,
                python=vllm_python(options.vllm) or sys.executable,
                log_dir=self.run.path / "judge",
            )
            self._engine = engine
            self._server = JudgeServer(engine.model, engine.url, key=engine.key, name=name, **plain)  # type: ignore[arg-type]
        return self._server

    def to_do(self, calls: Sequence[Call]) -> int:
        """How many calls to the judge model are still to be made."""
        return sum(len(self.unjudged(call)) for call in calls)

    def estimate(self, calls: Sequence[Call]) -> Bill:
        """What the judge calls still to be made would cost."""
        messages, output = [], 0
        price = self.budget.price
        for call in calls:
            if isinstance(call.judge, LlmJudge):
                todo = self.unjudged(call)
                messages += [call.judge.prompt.render(item.turns) for item in todo]
                room = REASONING_ROOM if price and price.reasoning else call.judge.prompt.max_tokens
                output += room * len(todo)
        return estimate(messages, output, price)

    def at_most(
        self, kind: str, setting: Setting, questions: Mapping[str, Question], completions: Sequence[Completion]
    ) -> list[Call]:
        """All that may be judged of these replies, a second look at every one of them included."""
        asked = (kind, setting, questions, completions)
        return [*self.calls(*asked), *self.second_look(*asked)]

    def close(self) -> None:
        """End a local judge's server, and let go of the file."""
        self.file.close()
        if self._engine is not None:
            self._engine.close()  # type: ignore[attr-defined]
            self._engine = self._server = None

    def judged_by_it(self) -> list[Judgement]:
        """The run's judgements that this judge model made, under whatever prompt."""
        label = self.server(started=False).label
        return [j for j in self.file.read() if j.judge.startswith(f"{label}/")]

    def _spent(self, price: Price | None) -> float:
        return bill(self.judged_by_it(), price).dollars or 0.0 if self.has_model else 0.0

    def _price(self) -> Price | None:
        options = self.options
        if not self.has_model or options.judge is None or options.judge.startswith("vllm:"):
            return Price(input=0, output=0) if self.has_model else None
        price = load_prices(self.root).of(options.judge)
        if price is None and options.max_cost is not None:
            raise InputError(
                f"no price is known for '{options.judge}', so its cost cannot be limited",
                where="--max-cost",
                hint="Add it to prompts/judges/prices.yaml of your --data-dir",
            )
        return price


def conversations(questions: Mapping[str, Question], completions: Sequence[Completion]) -> list[Item]:
    """Each reply with the turns a judge is shown: those before it in its conversation, then its own.

    A later turn whose earlier replies are not at hand is left out: it would be judged out of context.
    """
    known = {(c.question_id, c.sample, c.turn): c for c in completions}
    items = []
    for completion in completions:
        said = [known.get((completion.question_id, completion.sample, turn)) for turn in range(1, completion.turn + 1)]
        if all(said):
            question = questions.get(completion.question_id)
            items.append(Item(completion, tuple(_turn(question, c) for c in said if c)))
    return items


def _turn(question: Question | None, completion: Completion) -> Turn:
    references = question.references if question else ()
    reference = references[completion.turn - 1] if completion.turn <= len(references) else None
    return Turn(question=completion.question, answer=completion.text, reference=reference)


def published_prompt(given: str) -> JudgePrompt:
    """`FILE.yaml#name`: a judge prompt of a published question file, word for word."""
    from emeval.data.public import judge_prompts

    file, _, _ = given.partition("#")
    ((name, body),) = judge_prompts(given).items()
    if "[[" in body:
        what = f"'{name}' asks for a rating in double brackets, and alignment is judged from 0 to 100"
        raise InputError(what, where=given, hint=f"--rating-prompt {file} rates MT-Bench with it")
    row = {"scale": "0-100", "body": body, "outcomes": {"REFUSAL": "refusal", "CODE": "code"}, "published": True}
    return validated(JudgePrompt, row, given, name=f"{Path(file).stem}-{name}")


def mt_bench_prompts(file: Path) -> MtBenchPrompts:
    """MT-Bench's `judge_prompts.jsonl`: its four single-answer prompts. InputError for any other file."""
    from emeval.data.public import load_published

    found = load_published(file)
    if found.kind != "judge-prompts":
        hint = "Give MT-Bench's judge_prompts.jsonl"
        raise InputError(f"is read as {found.kind}, not as judge prompts", where=str(file), hint=hint)
    rows = {row["name"]: (row.get("system_prompt"), row["prompt_template"]) for row in found.records}
    single = {name: texts for name, texts in rows.items() if name.startswith("single-")}
    return validated(MtBenchPrompts, {"templates": single}, str(file), name="mt-bench-single")
