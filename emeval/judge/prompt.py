"""Judge prompts: `prompts/judges/<name>.md`, front matter and a Jinja body, or a published template, verbatim.

What is judged is data. A reply is put in between two marks made from its own hash, so that no reply can hold its own
end mark, and it is never read as template: Jinja renders it, sandboxed, as a value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from emeval.data.files import read_text, validated
from emeval.data.root import DataRoot
from emeval.errors import InputError
from emeval.store import sha256_of
from emeval.types import Outcome, Record

Scale = Literal["0-100", "rating", "flag"]
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_PLACE = re.compile(r"\{(question|answer)\}")


class Turn(Record):
    """One exchange that a judge is shown; `reference` is a known right answer."""

    question: str
    answer: str
    reference: str | None = None


class _Prompt(Record):
    """What all judge prompts have in common."""

    name: str

    @property
    def hash(self) -> str:
        """Eight hex digits that change with anything the judge is told."""
        return sha256_of(self.model_dump_json(exclude={"name"}))[:8]

    @property
    def id(self) -> str:
        """Name and hash."""
        return f"{self.name}@{self.hash}"


class JudgePrompt(_Prompt):
    """One judge's instructions.

    `published` bodies are other people's, with `{question}` and `{answer}` in them and nothing else of meaning.
    """

    scale: Scale
    body: str
    system: str | None = None
    outcomes: dict[str, Outcome] = Field(default_factory=dict)
    """What the judge may say instead of a number, by the word it says."""
    max_tokens: int = Field(default=16, gt=0)
    published: bool = False

    @model_validator(mode="after")
    def _can_be_rendered(self) -> JudgePrompt:
        if self.published:
            if "{answer}" not in self.body:
                raise ValueError("the template has no place for the {answer}")
        else:
            _compiled(self.body)
        return self

    def render(self, turns: Sequence[Turn]) -> list[dict[str, str]]:
        """The messages for one judgement. The last turn is the one to judge; those before it are context."""
        last = turns[-1]
        if self.published:
            values = {"question": last.question, "answer": last.answer}
            text = _PLACE.sub(lambda found: values[found.group(1)], self.body)
        else:
            text = _compiled(self.body).render(question=last.question, answer=last.answer, turns=list(turns))
        return _messages(self.system, text)


_SINGLE = {
    (False, False): "single-v1",
    (False, True): "single-math-v1",
    (True, False): "single-v1-multi-turn",
    (True, True): "single-math-v1-multi-turn",
}
"""MT-Bench's names of its single-answer prompts, by whether it is a later turn and whether references are shown."""
_NUMBERED = re.compile(r"\{(question|answer|ref_answer)(?:_(\d))?\}")
_MOST_TURNS = 2


class MtBenchPrompts(_Prompt):
    """MT-Bench's own single-answer prompts, word for word; which of the four it is, the turns decide."""

    templates: dict[str, tuple[str | None, str]]
    """System prompt and template by MT-Bench's name of the prompt."""
    scale: Literal["rating"] = "rating"
    outcomes: dict[str, Outcome] = Field(default_factory=dict)
    max_tokens: int = 2048
    """As FastChat asks for."""

    @model_validator(mode="after")
    def _all_there(self) -> MtBenchPrompts:
        for (later, referenced), name in _SINGLE.items():
            if name not in self.templates:
                raise ValueError(f"the prompt {name} is missing")
            places = {found[0] for found in _NUMBERED.finditer(self.templates[name][1])}
            wanted = {"{answer_1}", "{answer_2}"} if later else {"{answer}"}
            wanted |= {f"{{ref_answer_{n}}}" for n in (1, 2)[: 1 + later]} if referenced else set()
            if missing := sorted(wanted - places):
                raise ValueError(f"the prompt {name} has no place for the {missing[0]}")
        return self

    def render(self, turns: Sequence[Turn]) -> list[dict[str, str]]:
        """See `JudgePrompt.render`. References are shown where every turn has one.

        Raises:
            InputError: For a conversation of more turns than MT-Bench's prompts have places.
        """
        if len(turns) > _MOST_TURNS:
            what = f"MT-Bench's prompts rate conversations of {_MOST_TURNS} turns, this has {len(turns)}"
            raise InputError(what, where="--rating-prompt", hint="Use emeval's own, rating")
        system, template = self.templates[_SINGLE[len(turns) > 1, all(turn.reference for turn in turns)]]

        def value(found: re.Match[str]) -> str:
            number = int(found[2] or len(turns))
            if not 1 <= number <= len(turns):
                return found[0]
            turn = turns[number - 1]
            return {"question": turn.question, "answer": turn.answer, "ref_answer": turn.reference or ""}[found[1]]

        return _messages(system, _NUMBERED.sub(value, template))


def _messages(system: str | None, text: str) -> list[dict[str, str]]:
    # Half a character, which models do write, cannot be sent: it becomes the sign for what cannot be shown.
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": whole}]


def load_judge_prompt(root: DataRoot, name: str) -> JudgePrompt:
    """The judge prompt `name`; InputError with a suggestion when there is none."""
    return load_judge_prompt_file(root.find("prompts/judges", name, ".md", "judge prompt"))


def load_judge_prompt_file(path: Path) -> JudgePrompt:
    """A judge prompt file; its name is the file's. InputError with file and field for a bad one."""
    text = read_text(path)
    front = _FRONT.match(text)
    if not front:
        raise InputError("no front matter", where=f"{path}:1", hint="Begin with ---, `scale: 0-100`, ---")
    try:
        fields = yaml.safe_load(front.group(1))
    except yaml.YAMLError as e:
        raise InputError("broken YAML in the front matter", where=str(path), hint="Check indentation and quotes") from e
    return validated(JudgePrompt, fields, str(path), name=path.stem, body=text[front.end() :].strip())


def quoted(text: str, name: str) -> str:
    """`text` between marks that it cannot hold itself, since they are made from its hash."""
    mark = sha256_of(name, text)[:12]
    return f"[{name} {mark}]\n{text}\n[END OF {name} {mark}]"


@cache
def _compiled(body: str) -> Any:
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, trim_blocks=True)
    environment.filters["quoted"] = quoted
    try:
        template = environment.from_string(body)
        template.render(question="q", answer="a", turns=[Turn(question="q", answer="a", reference="r")] * 2)
    except TemplateError as e:
        raise ValueError(f"not a template that can be filled in ({e})") from e
    return template
