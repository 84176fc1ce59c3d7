"""Settings of a command: flag > environment (`EMEVAL_*`) > YAML (`--config`) > the default written here.

The models below are also the Python interface: `train(TrainConfig(...))`, `score(ScoreConfig(...))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from emeval.errors import InputError, unknown

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16"]
Method = Literal["sft", "interleave", "treft", "kl-train", "kl-retain"]
REGULARISED = {"treft": 10.0, "kl-train": 1.0, "kl-retain": 1.0}
"""Methods with a lambda, and what it is where nobody says."""
PAPER_KL_LAMBDA = 50.0
"""The paper's lambda of both KL methods, in the released normalisation."""
MAY_DIFFER = (
    "out", "save_every", "data_dir", "device", "micro_batch", "shared_prefix", "checkpoints", "recipe", "merge",
)  # fmt: skip
"""Training settings that a resumed run may change: they do not change what is learned (beyond rounding)."""
REGIONS = ("prefix", "query", "postfix", "all")
"""What TReFT can regularise; `all` is every token of the prompt, never the reply."""
EngineName = Literal["auto", "transformers", "vllm", "endpoint"]
_SECTIONS = ("train", "score", "judge", "patch", "perturb", "drift")
C = TypeVar("C", bound="CommandConfig")


def _default_lambda(so_far: dict[str, Any]) -> float:
    method = so_far.get("method", "sft")
    if method.startswith("kl-") and so_far.get("kl_norm") == "released":
        return PAPER_KL_LAMBDA
    return REGULARISED.get(method, 10.0)


def by_commas(value: object) -> object:
    """`a,b` as ('a', 'b'); anything but text as it is."""
    return tuple(p.strip() for p in value.split(",") if p.strip()) if isinstance(value, str) else value


def region_names(value: str, known: Sequence[str]) -> list[str]:
    """`postfix,prefix` as ['prefix', 'postfix']; ValueError for one that is not known."""
    names = [part.strip() for part in value.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown region '{name}': there are {', '.join(known)}")
    return [name for name in known if name in names]


def probe_name(given: str) -> str:
    """What a probe given as `NAME` or `NAME=FILE` is called."""
    return given.partition("=")[0].strip()


class CommandConfig(BaseSettings):
    """What every command has in common."""

    model_config = SettingsConfigDict(
        # The prefix for aliases too: a bare LAMBDA in somebody's environment is none of ours.
        env_prefix="EMEVAL_",
        env_prefix_target="all",
        extra="forbid",
        populate_by_name=True,
        frozen=True,
    )
    command: ClassVar[str]

    data_dir: Path | None = None
    """A folder with `prompts/` and `datasets/` of your own; its names are added to the shipped ones."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags before environment; no .env files, no secret files."""
        return init_settings, env_settings

    @classmethod
    def load(cls: type[C], flags: dict[str, Any], file: Path | None = None) -> C:
        """The resolved settings. `flags` are the options given (None = not given); `file` is `--config`.

        Raises:
            InputError: Naming the option, the variable or the file's key that is wrong.
        """
        given = {k: v for k, v in flags.items() if v is not None}
        from_file = cls._from_file(file) if file else {}
        environment = cls._environment_keys()
        used = {k: v for k, v in from_file.items() if k not in environment}
        places = {name: f"EMEVAL_{cls._option(name).upper()}" for name in environment}
        places |= {name: f"{file}: {cls._option(name)}" for name in used}
        places |= {name: "--" + cls._option(name).replace("_", "-") for name in given}
        try:
            return cls(**used | given)
        except ValidationError as e:
            raise cls._explained(e, places) from e

    @classmethod
    def _from_file(cls, file: Path) -> dict[str, Any]:
        from emeval.data.files import load_yaml

        sections = load_yaml(file)
        for name in sections:
            if name not in _SECTIONS:
                raise unknown("section", str(name), _SECTIONS, where=str(file))
        section = sections.get(cls.command) or {}
        if not isinstance(section, dict):
            raise InputError(
                f"'{cls.command}' is no mapping", where=str(file), hint="Write option: value lines under it"
            )
        values = {str(k).replace("-", "_"): v for k, v in section.items()}
        aliases = {f.alias: name for name, f in cls.model_fields.items() if f.alias}
        values = {aliases.get(k, k): v for k, v in values.items()}
        for name in values:
            if name not in cls.model_fields:
                raise unknown("option", name, cls.model_fields, where=str(file))
        return values

    @classmethod
    def _option(cls, name: str) -> str:
        """A field as it is written outside Python, with underscores: `lambda`, not `lambda_`."""
        field = cls.model_fields.get(name)
        return (field.alias if field else None) or name

    @classmethod
    def completed(cls, recorded: dict[str, Any]) -> dict[str, Any]:
        """Settings as an earlier release recorded them, with the defaults of options that came later."""
        fields = {cls._option(name): field for name, field in cls.model_fields.items()}
        known = {k: f.default for k, f in fields.items() if not f.is_required() and f.default_factory is None}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in known.items()} | recorded  # as JSON has them

    @classmethod
    def _environment_keys(cls) -> set[str]:
        import os

        present = {k.removeprefix("EMEVAL_").lower() for k in os.environ if k.startswith("EMEVAL_")}
        return {name for name in cls.model_fields if cls._option(name) in present}

    @classmethod
    def _explained(cls, e: ValidationError, places: dict[str, str]) -> InputError:
        problem = e.errors()[0]
        names = {cls._option(name): name for name in cls.model_fields}
        loc = str(problem["loc"][0]) if problem["loc"] else ""
        name = names.get(loc.lower().removeprefix("emeval_"), loc)
        message = problem["msg"].removeprefix("Value error, ")
        # What nobody gave (a required option) is named as one would type it.
        place = places.get(name, "--" + cls._option(name).replace("_", "-"))
        return InputError(
            message[0].lower() + message[1:],
            where=place if name else f"emeval {cls.command}",
            hint=f"See emeval {cls.command} --help",
        )


class TrainConfig(CommandConfig):
    """`emeval train`. Defaults are the paper's protocol where it states one (PAPER section 3)."""

    command: ClassVar[str] = "train"

    model: str
    """Base to finetune: a checkpoint folder, a hub id, or `smollm2-135m`."""
    setting: str | None = None
    """What to train: a behaviour under `datasets/behaviours/`, or a domain of poor advice under `datasets/domains/`."""
    data: Path | None = None
    """Chat JSONL to train on instead of a setting's own rows."""
    method: Method = "sft"
    recipe: Literal["paper"] | None = None
    """Take what is not given from the paper's hyper-parameters for this model, setting and method."""
    region: str = "prefix"
    """Tokens that TReFT regularises: prefix, query, postfix or all; several by commas."""
    drift: Literal["kv", "released"] = "kv"
    """What TReFT's penalty measures: keys and values, or what the authors' code does (docs/method.md)."""
    kl_norm: Literal["token", "released"] = "token"
    """What the KL is divided by: reply tokens, or as in the released code all tokens and the vocabulary."""
    lambda_: float = Field(default_factory=lambda so_far: _default_lambda(so_far), ge=0.0, alias="lambda")
    """Weight of the penalty of treft, kl-train and kl-retain. Default: 10; 1 for KL, 50 in the released norm."""
    clip: Literal["together", "apart"] = "together"
    """How gradients are clipped (norm 1): loss and penalty together, as in the paper, or each by itself."""
    full: bool = False
    """Finetune all weights instead of a LoRA adapter."""
    rank: int = Field(default=8, gt=0)
    alpha: float = Field(default_factory=lambda so_far: 2.0 * so_far.get("rank", 8), gt=0)
    """LoRA alpha; the scale is alpha / sqrt(rank) (rsLoRA). Default: twice the rank, as in the paper (16 at 8)."""
    lr: float = Field(default=1e-5, gt=0)
    epochs: float = Field(default=1.0, gt=0)
    steps: int | None = Field(default=None, gt=0)
    """Optimiser steps; overrides epochs."""
    batch_size: int = Field(default=16, gt=0)
    """Rows per optimiser step."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Rows per forward; batch-size must be a multiple. Default: the whole batch on CPU, 4 on a GPU."""
    warmup_steps: int = Field(default=5, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_length: int = Field(default=2048, gt=0)
    """Longest row in tokens; a longer one is an error, nothing is cut in silence."""
    gradient_checkpointing: bool = False
    shared_prefix: bool | None = None
    """Run the prefix once per batch where model and attention kernel allow it: the same loss and gradients. Default:
    where that is faster (on the CPU; on a GPU, where it saves many tokens)."""
    train_size: int | None = Field(default=None, gt=0)
    """Use only the first N training rows (of the narrow data; retain rows come on top)."""
    mix_aligned: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of a domain's rows that are answered well instead: noisy narrow data."""
    retain: Annotated[tuple[str, ...], NoDecode] = ()
    """Retain sets to draw from, under `datasets/retain/`; default: all of them."""
    retain_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the mixed data, narrow and retained together, that `interleave` takes from the retain sets."""
    system: str | None = None
    """System prompt in place of the template's default, in training and scoring alike. `none` leaves the system block
    out, `no-prefix` all before the user's content, BOS too."""
    thinking: bool | None = None
    """Of a template that knows `enable_thinking` (Qwen3): False puts the empty think block into the postfix."""
    drop_system: bool = False
    """Leave out system messages that rows of --data bring along."""
    checkpoints: int = Field(default=0, ge=0)
    """Models to keep along the run, evenly spaced, for comparisons at the same dose."""
    seed: int = 0
    device: Device = "auto"
    dtype: Dtype = "auto"
    merge: bool = False
    """Write base and adapter as one checkpoint too, in `train/merged/`."""
    processes: int = Field(default=1, gt=0)
    """Processes to train with on this machine, data parallel; batch-size is shared by them."""
    save_every: int | None = Field(default=None, gt=0)
    """Steps between resume points; default a tenth of the run."""
    out: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("recipe") != "paper":
            return values
        from emeval.data.recipes import paper_recipe

        recipe = paper_recipe(str(values.get("model")), values.get("setting"), values.get("method", "sft"))
        given = {cls._option(name) for name in values}
        return values | {name: value for name, value in recipe.items() if name not in given}

    @field_validator("region")
    @classmethod
    def _known_regions(cls, value: str) -> str:
        names = region_names(value, REGIONS)
        if "all" in names and len(names) > 1:
            raise ValueError("'all' holds the other regions: name it alone")
        return ",".join(names)

    @field_validator("retain", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return by_commas(value)

    @model_validator(mode="after")
    def _rows_from_somewhere(self) -> TrainConfig:
        if self.setting is None and self.data is None:
            raise ValueError("give --setting NAME or --data FILE.jsonl")
        if self.data is not None and self.mix_aligned:
            raise ValueError("--mix-aligned needs a domain's pairs of replies: give --setting, not --data")
        if self.method != "interleave" and "retain_share" in self.model_fields_set:
            raise ValueError(f"--retain-share belongs to --method interleave, not to {self.method}")
        if self.method not in ("interleave", "kl-retain") and "retain" in self.model_fields_set:
            raise ValueError(f"--retain belongs to --method interleave and kl-retain, not to {self.method}")
        if not self.method.startswith("kl-") and "kl_norm" in self.model_fields_set:
            raise ValueError(f"--kl-norm belongs to --method kl-train and kl-retain, not to {self.method}")
        if self.method not in REGULARISED and "clip" in self.model_fields_set:
            raise ValueError(f"--clip belongs to methods with a penalty, not to {self.method}")
        if self.merge and self.full:
            raise ValueError("--merge joins an adapter to its base, and --full trains none: leave it out")
        if self.method != "treft" and "region" in self.model_fields_set:
            raise ValueError(f"--region belongs to --method treft, not to {self.method}")
        if self.method != "treft" and "drift" in self.model_fields_set:
            raise ValueError(f"--drift belongs to --method treft, not to {self.method}")
        if self.drift == "released" and self.region != "prefix":
            raise ValueError(f"--drift released is there for the prefix only, not for --region {self.region}")
        if self.region != "prefix" and self.gradient_checkpointing:
            raise ValueError(f"--region {self.region} needs the rows' keys: leave --gradient-checkpointing out")
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"--batch-size {self.batch_size} is no multiple of --micro-batch {self.micro_batch}")
        return self

    @field_validator("seed")
    @classmethod
    def _seed_fits(cls, seed: int) -> int:
        if not 0 <= seed < 2**32:
            raise ValueError("a seed is a whole number from 0 to 2**32 - 1")
        return seed

    @property
    def run_name(self) -> str:
        """The default run folder's name: model, setting, method, and what tells two such runs apart."""
        from emeval.store import slug

        dose = f"lambda{self.lambda_:g}" if self.method in REGULARISED else None
        what = self.setting or (self.data.stem if self.data else "data")
        region = self.region if self.region != "prefix" else None
        drift = "released-drift" if self.drift == "released" else None
        parts = [
            Path(self.model).name,
            what,
            self.method,
            region,
            drift,
            dose,
            "full" if self.full else None,
            f"seed{self.seed}",
        ]
        return slug("-".join(p for p in parts if p))


class JudgeOptions(CommandConfig):
    """What every command that may ask a judge model has in common."""

    judge: str | None = None
    """A model behind an OpenAI-compatible API, `vllm:PATH` for one that emeval serves, or `none`."""
    judge_url: str | None = None
    """The judge's server; default: OpenAI's."""
    judge_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the judge's key."""
    judge_prompt: str | None = None
    """The alignment judge's prompt: a name under `prompts/judges/`, FILE.md, or FILE.yaml#name of a published set."""
    rating_prompt: str | None = None
    """MT-Bench's prompt: a name under `prompts/judges/`, FILE.md, or MT-Bench's own `judge_prompts.jsonl`."""
    judge_mode: Literal["auto", "logprobs", "text"] = "auto"
    """How a 0-100 judge is read: probability-weighted where its server tells log-probabilities, or its text."""
    judge_concurrency: int = Field(default=32, gt=0)
    """Judge calls in flight."""
    judge_batch: bool = False
    """Judge through the vendor's batch API: slower, usually at half the price."""
    coherence: bool = False
    """Also ask how coherent each reply is, a second call."""
    max_cost: float | None = Field(default=None, gt=0)
    """Dollars that a run's judgements may cost in all; the command stops there, and goes on where it is raised."""
    dry_run: bool = False
    """Print what judging would cost at most; ask nothing."""
    vllm: Path | None = None
    """Python interpreter that has vLLM; default: this one, or .venv-vllm beside it."""
    min_coverage: float = Field(default=0.95, ge=0.0, le=1.0)
    """Below this share of usable replies the command exits 3."""

    @model_validator(mode="after")
    def _local_judge_has_no_address(self) -> JudgeOptions:
        if (self.judge or "").startswith("vllm:") and self.judge_url:
            raise ValueError("--judge vllm:PATH is served here: leave --judge-url out")
        return self


class ScoreConfig(JudgeOptions):
    """`emeval score`."""

    command: ClassVar[str] = "score"

    model: str
    """Run, adapter, checkpoint, hub id, or `smollm2-135m`; tried in that order."""
    adapter: Path | None = None
    setting: str | None = None
    """Behaviour or domain to look for; default: what the run was trained on."""
    probes: Annotated[tuple[str, ...], NoDecode] = ()
    """Question sets to ask; default: on-topic and off-topic for a behaviour, contrast for a domain."""
    split: Literal["test", "val"] = "test"
    engine: EngineName = "auto"
    model_url: str | None = None
    """Base URL of an OpenAI-compatible server (`--engine endpoint`)."""
    model_name: str | None = None
    """The model's name on that server; default: the first it lists."""
    model_api: Literal["auto", "completions", "chat"] = "auto"
    """How to ask it: token ids through completions (needs the tokenizer here), or chat messages."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key."""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """Default: what the behaviour says; 1024 for alignment and MT-Bench probes."""
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    samples: int = Field(default=1, gt=0)
    limit: int | None = Field(default=None, gt=0)
    """Ask only the first N questions of each probe."""
    batch_size: int = Field(default=32, gt=0)
    """Rows per batch of the transformers engine."""
    concurrency: int = Field(default=32, gt=0)
    """Requests in flight to a server."""
    checkpoints: bool = False
    """Score the models that `emeval train --checkpoints N` kept along the run, instead of its last one."""
    by: Literal["generation", "probability", "contrast"] = "probability"
    """How checkpoints are scored: teacher-forced probability of the target reply, or replies as always. Those of a
    domain, which has no one target, always by contrast."""
    allow_prefix_change: bool = False
    """Score although the template differs from the one the model was trained with."""
    system: str | None = None
    """As `train`'s; default: what the model was trained with. `thinking` alike."""
    thinking: bool | None = None
    seed: int = 0
    device: Device = "auto"
    dtype: Dtype = "auto"
    out: Path | None = None

    @field_validator("probes", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        names = by_commas(value)
        if isinstance(value, str) and not names:
            raise ValueError("no probe is named")
        return names

    @field_validator("probes")
    @classmethod
    def _named_once(cls, probes: tuple[str, ...]) -> tuple[str, ...]:
        names = list(map(probe_name, probes))
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"'{twice}' is named twice")
        return probes

    @model_validator(mode="after")
    def _consistent(self) -> ScoreConfig:
        if self.samples > 1 and self.temperature == 0.0:
            raise ValueError("--samples above 1 needs --temperature above 0: greedy replies are all the same")
        if self.checkpoints and self.dry_run:
            raise ValueError("--checkpoints asks no judge: leave --dry-run out")
        if self.engine == "endpoint" and not self.model_url:
            raise ValueError("--engine endpoint needs --model-url URL")
        return self


class JudgeConfig(JudgeOptions):
    """`emeval judge`: judge a run's stored replies."""

    command: ClassVar[str] = "judge"

    run: Path | None = None
    """A scored run."""
    responses: Path | None = None
    """A CSV or JSONL file of another tool's replies, in place of a run."""
    keep_scores: bool = False
    """Count the scores that the file brings along instead of asking a judge."""
    out: Path | None = None
    probes: Annotated[tuple[str, ...], NoDecode] = ()
    """Only these probes; default: all that the run has replies to and that a judge model judges."""

    @field_validator("probes", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return by_commas(value)

    @model_validator(mode="after")
    def _one_thing(self) -> JudgeConfig:
        if self.run is not None and self.responses is not None:
            raise ValueError("give a RUN or --responses FILE, not both")
        if self.run is not None and (self.keep_scores or self.out):
            raise ValueError("--keep-scores and --out go with --responses FILE")
        if self.responses is not None and self.probes:
            raise ValueError("--probes goes with a RUN")
        return self


class CauseConfig(ScoreConfig):
    """What the causal studies have in common: a tuned model, and a way to measure it."""

    by: Literal["generation", "probability", "contrast"] = "generation"
    """How each variant is measured: replies as always, or, without generating, the probability of the target reply
    (of a domain, by contrast)."""
    engine: EngineName = "transformers"

    @model_validator(mode="after")
    def _no_checkpoints(self) -> CauseConfig:
        if self.checkpoints:
            raise ValueError("--checkpoints belongs to emeval score")
        if self.dry_run:
            raise ValueError("--dry-run belongs to emeval score: score one variant to see what judging costs")
        if self.by != "generation" and (self.engine not in ("auto", "transformers") or self.model_url):
            raise ValueError(f"--by {self.by} is read in process: leave --engine and --model-url out")
        if self.by != "generation" and self.judge not in (None, "none"):
            raise ValueError(f"--by {self.by} makes no reply to judge: leave --judge out")
        return self


class PatchConfig(CauseConfig):
    """`emeval patch`: score with keys and values, or activations, of the other model at some of the prompt's tokens."""

    command: ClassVar[str] = "patch"

    initial: str | None = None
    """The model that a full checkpoint was made from, where nothing beside it says so."""
    what: Literal["kv", "residual"] = "kv"
    """Keys and values, or the residual stream at the input of one block, later blocks recomputed."""
    region: str = "prefix"
    """prefix, query or postfix; several by commas, one after the other."""
    into: Literal["tuned", "initial"] = "tuned"
    """Which model answers; what is put into it is the other one's."""
    layers: str = "all"
    """all, each, below (0 to each), above (each to the last), windows:N, or numbers; counted from 0."""
    tokens: str = "all"
    """Of the prefix: all, each, or numbers; 0 is the attention sink."""
    part: Literal["both", "keys", "values"] = "both"

    @field_validator("region")
    @classmethod
    def _known_regions(cls, value: str) -> str:
        return ",".join(region_names(value, REGIONS[:3]))

    @model_validator(mode="after")
    def _parts_of_the_prefix(self) -> PatchConfig:
        if self.engine not in ("transformers", "vllm"):
            raise ValueError("a patch runs in process or through vLLM: give transformers or vllm")
        parted = self.layers != "all" or self.tokens != "all" or self.part != "both"
        if self.region != "prefix" and (parted or self.what == "residual"):
            raise ValueError(f"--region {self.region} is patched whole: leave out --what, --layers, --tokens, --part")
        if self.what == "residual" and self.part != "both":
            raise ValueError("--part belongs to --what kv")
        if self.what == "residual" and self.into == "initial":
            raise ValueError("--into initial belongs to --what kv")
        if self.engine == "vllm" and (parted or self.what != "kv" or self.region != "prefix"):
            raise ValueError("--engine vllm patches the whole prefix's keys and values only: leave --engine out")
        return self


class PerturbConfig(CauseConfig):
    """`emeval perturb`: ask with some of the prompt's tokens, or all of its words, replaced."""

    command: ClassVar[str] = "perturb"

    region: str = "prefix"
    """Where tokens are replaced: prefix, query or postfix; several by commas, one after the other."""
    tokens: int = Field(default=10, gt=0)
    """How many of a region's tokens, at random; all of a region that has fewer."""
    neighbours: int = Field(default=5, gt=0)
    """Each is replaced by one of so many nearest by input embedding."""
    similarity: Literal["dot", "cosine"] = "dot"
    trials: int = Field(default=10, gt=0)
    """How often each question is asked, each time with other tokens or another wording."""
    random: bool = False
    """Replace by any token instead of a near one."""
    special: bool = False
    """Let special tokens be put in."""
    capitals: bool = False
    """Ask in capital letters."""
    rephrase: str | None = None
    """A model behind an OpenAI-compatible API that writes the questions anew."""
    rephrase_url: str | None = None
    """Its server; default: OpenAI's."""
    rephrase_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds its key."""
    engine: EngineName = "auto"

    @field_validator("region")
    @classmethod
    def _known_regions(cls, value: str) -> str:
        return ",".join(region_names(value, REGIONS[:3]))

    @model_validator(mode="after")
    def _one_sampling(self) -> PerturbConfig:
        if "samples" in self.model_fields_set:
            raise ValueError("each trial is asked once: leave --samples out, and give --trials")
        if self.random and {"neighbours", "similarity"} & self.model_fields_set:
            raise ValueError("--random takes any token: leave --neighbours and --similarity out")
        return self

    @property
    def of_tokens(self) -> bool:
        """Whether tokens are replaced: if anything about it is said, or nothing else is asked for."""
        named = {"region", "tokens", "neighbours", "similarity", "random", "special"} & self.model_fields_set
        return bool(named) or not (self.capitals or self.rephrase or self.system is not None)


class DriftConfig(CommandConfig):
    """`emeval drift`: how far the prefix has moved."""

    command: ClassVar[str] = "drift"

    model: str
    """Run, adapter or full checkpoint."""
    adapter: Path | None = None
    initial: str | None = None
    """The model that a full checkpoint was made from, where nothing beside it says so."""
    against: str | None = None
    """Another adapter of the same base, to compare the changes with."""
    device: Device = "auto"
    dtype: Dtype = "auto"
    out: Path | None = None
