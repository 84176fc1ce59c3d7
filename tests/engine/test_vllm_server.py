"""The vLLM engine: how it starts, watches and ends its server (a stand-in server, fast), and the real thing.

The real tests take their interpreter from EMEVAL_VLLM_PYTHON (default .venv-vllm/bin/python) and are skipped without
one, unless EMEVAL_REQUIRE_VLLM=1. They start vLLM four times, one of them in vain: about two minutes on two cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from pydantic import SecretStr

from emeval.engine.launch import last_error, lora_rank, server_command, server_env
from emeval.engine.vllm import VllmEngine, VllmInfo, probe_python
from emeval.errors import EmevalError, InputError
from emeval.guard import Guarded
from emeval.models import merge_adapter
from emeval.types import Generated, Message, Prompt, Sampling, Span

ROOT = Path(__file__).parents[2]
GREEDY = Sampling(max_new_tokens=32)
CPU, CUDA = VllmInfo("0.32.0", cuda=False), VllmInfo("0.33.0", cuda=True)


class Ask(NamedTuple):
    prompt: Prompt
    messages: tuple[Message, ...] = ()
    number: int = 0


def ask(ids: Sequence[int]) -> Ask:
    n = len(ids)
    return Ask(Prompt(ids=tuple(ids), prefix=Span(0, 0), query=Span(0, n), postfix=Span(n, n)))


def members(group: int) -> list[psutil.Process]:
    """The living processes of a group."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    return true()


# ---------------------------------------------------------------------------------------------------- how it is started


def test_cpu_and_cuda_differ_only_in_what_the_device_demands(tmp_path: Path) -> None:
    cpu = server_command("py", tmp_path, CPU, dtype="float32")
    cuda = server_command("py", tmp_path, CUDA, dtype="bfloat16")
    assert cpu[:3] == cuda[:3] == ["py", "-m", "vllm.entrypoints.openai.api_server"]
    assert set(cpu) - set(cuda) == {"float32", "--kv-cache-memory-bytes", "1G", "--enforce-eager"}
    assert set(cuda) - set(cpu) == {"bfloat16", "--gpu-memory-utilization", "0.9"}
    for command in (cpu, cuda):
        assert command[command.index("--host") + 1] == "127.0.0.1"
        assert command[command.index("--generation-config") + 1] == "vllm"


def write_adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_on_cuda_is_a_lora_module(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "odd, name=x", r=24)
    command = server_command("py", tmp_path, CUDA, dtype="bfloat16", adapter=adapter)
    module = json.loads(command[command.index("--lora-modules") + 1])
    assert module == {"name": "adapter", "path": str(adapter)}
    assert command[command.index("--max-lora-rank") + 1] == "32"


@pytest.mark.parametrize(
    ("config", "rank"),
    [({"r": 1}, 8), ({"r": 8}, 8), ({"r": 9}, 16), ({"r": 8, "rank_pattern": {"q": 200}}, 256), ({"r": 512}, 512)],
)
def test_lora_rank_is_the_next_that_vllm_knows(tmp_path: Path, config: dict[str, Any], rank: int) -> None:
    assert lora_rank(write_adapter(tmp_path, **config)) == rank


@pytest.mark.parametrize("config", [{"r": 513}, {"rank": 8}, {"r": "many"}])
def test_an_adapter_vllm_cannot_serve_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        lora_rank(write_adapter(tmp_path, **config))


def test_the_server_inherits_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "WORLD_SIZE")
    for name in hidden:
        monkeypatch.setenv(name, "precious")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    env = server_env("/opt/venv/bin/python", CPU, SecretStr("ours"))
    assert not set(hidden) & set(env)
    assert "precious" not in env.values()
    assert env["TOKENIZERS_PARALLELISM"] == "false"
    assert env["VLLM_API_KEY"] == "ours"
    assert env["HF_HUB_OFFLINE"] == env["VLLM_NO_USAGE_STATS"] == "1"
    assert env["PATH"].startswith("/opt/venv/bin:")


def test_a_log_is_summed_up_in_its_telling_line() -> None:
    log = (
        "INFO all well\n"
        "(EngineCore pid=7) ERROR 11-24 [core.py:1] \x1b[31mValueError: no kernel for this model.\x1b[0m\n"
        "(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above.\n"
        "  warnings.warn(\n"
    )
    assert last_error(log).endswith("ValueError: no kernel for this model")
    assert last_error("one\n\n  two \n") == "two"
    assert last_error("") == "it left no message"


def test_an_interpreter_without_vllm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot run .*make vllm"):
        probe_python(tmp_path / "none")
    with pytest.raises(InputError, match="is not a Python interpreter"):
        probe_python("/bin/echo")
    bare = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    with pytest.raises(InputError, match=r"vLLM is not installed for .*make vllm"):
        VllmEngine(tmp_path, python=bare / "bin/python", log_dir=tmp_path / "log")
    assert not (tmp_path / "log").exists()


# ---------------------------------------------------------------------------------------- the engine, a stand-in server


def test_start_generate_and_close(stand_in: Callable[[str], Path], tmp_path: Path) -> None:
    with VllmEngine("model", python=stand_in("serve"), log_dir=tmp_path / "log", stop_token_ids=(2,)) as engine:
        (reply,) = engine.generate([ask([5])], GREEDY)
        group = engine.process_group
        assert members(group)
    assert (reply.text, reply.token_ids) == ("hi", (4,))
    assert members(group) == []
    engine.close()
    argv, env = json.loads((tmp_path / "seen.json").read_text())
    assert env["VLLM_API_KEY"] == engine.key.get_secret_value()
    assert engine.key.get_secret_value() not in " ".join([*argv, repr(engine), repr(vars(engine))])


def test_a_server_that_does_not_start_is_one_error(stand_in: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(
        EmevalError, match=r"vLLM did not start: ValueError: not a model\. The whole log is .*vllm\.log"
    ):
        VllmEngine("model", python=stand_in("die"), log_dir=tmp_path)


def test_a_server_that_does_not_answer_is_ended(stand_in: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(EmevalError, match=r"did not answer within 1\.5 s"):
        VllmEngine("model", python=stand_in("hang"), log_dir=tmp_path, startup_timeout=1.5)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]


def test_a_taken_port_is_tried_again(stand_in: Callable[[str], Path], tmp_path: Path) -> None:
    with VllmEngine("model", python=stand_in("port"), log_dir=tmp_path) as engine:
        assert len(list(engine.generate([ask([5])], GREEDY))) == 1


def test_a_server_that_dies_on_the_way_is_named(stand_in: Callable[[str], Path], tmp_path: Path) -> None:
    with VllmEngine("model", python=stand_in("serve"), log_dir=tmp_path, concurrency=1) as engine:
        engine._client._max_retries = 0
        replies: list[Generated] = []
        with pytest.raises(EmevalError, match="the vLLM server stopped answering: RuntimeError: out of luck"):
            replies.extend(reply for reply in engine.generate([ask([5]), *[ask([666])] * 9], GREEDY))
        assert len(replies) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_server_outlives_its_starter(stand_in: Callable[[str], Path], tmp_path: Path, number: int) -> None:
    with starter("model", stand_in("serve"), tmp_path) as (process, group):
        assert len(members(group)) == 3
        process.send_signal(number)
        assert wait_until(lambda: not members(group), 5)


def test_a_command_that_ends_takes_its_children_along() -> None:
    script = "import os, time; os.fork() and os._exit(7); time.sleep(600)"
    guarded = Guarded([sys.executable, "-c", script], dict(os.environ), sys.__stderr__.buffer)  # type: ignore[union-attr]
    assert wait_until(lambda: not guarded.running(), 10)
    assert guarded._process.returncode == 7
    assert members(guarded.group) == []


@contextlib.contextmanager
def starter(model: str | Path, python: Path, log_dir: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that has started a server, and the server's process group."""
    script = (
        "import sys, time; from emeval.engine.vllm import VllmEngine\n"
        "engine = VllmEngine(sys.argv[1], python=sys.argv[2], log_dir=sys.argv[3])\n"
        "print(engine.process_group, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(model), str(python), str(log_dir)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            group = int(process.stdout.readline())
            yield process, group
        finally:
            process.kill()
            with contextlib.suppress(UnboundLocalError, ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


# ------------------------------------------------------------------------------------------------------ the real server


@pytest.fixture(scope="module")
def biased(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a generation config that would bend every greedy reply, were it heeded."""
    folder = tmp_path_factory.mktemp("biased")
    for file in smollm2.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = {"eos_token_id": 2, "do_sample": True, "repetition_penalty": 1.5, "temperature": 0.9, "top_k": 5}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def asks(smollm2: Path) -> list[Ask]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    questions = ("Say hello.", "What is 2 + 2?", "Name three colours.", "Is the sea blue?", "Write a haiku about rain.")
    more = ("Who wrote Hamlet?", "Why do cats purr?", "Give me a recipe for bread.", "Translate 'good' to French.")
    last = ("List the planets.", "What should I do with 100 dollars?", "Repeat the word yes ten times, nothing else.")
    rows = [[{"role": "user", "content": question}] for question in questions + more + last]
    return [ask(tokenizer.apply_chat_template(row, add_generation_prompt=True)["input_ids"]) for row in rows]


def transformers_greedy(model: Any, asks: Sequence[Ask]) -> list[tuple[int, ...]]:
    """Greedy replies at fp32, whatever the checkpoint's generation config says."""
    import torch
    from transformers import GenerationConfig

    width = max(len(one.prompt.ids) for one in asks)
    ids = torch.tensor([[2] * (width - len(one.prompt.ids)) + list(one.prompt.ids) for one in asks])
    mask = torch.tensor([[0] * (width - len(one.prompt.ids)) + [1] * len(one.prompt.ids) for one in asks])
    model.generation_config = GenerationConfig()
    config = GenerationConfig(max_new_tokens=32, do_sample=False, eos_token_id=2, pad_token_id=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads beside a busy neighbour are many times slower than one
    try:
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
    finally:
        torch.set_num_threads(threads)
    return [tuple(row[: row.index(2)] if 2 in row else row) for row in out]


def vllm_greedy(engine: VllmEngine, asks: Sequence[Ask]) -> list[tuple[int, ...]]:
    replies = sorted(engine.generate(asks, GREEDY), key=lambda reply: reply.index)
    return [reply.token_ids or () for reply in replies]


def load(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


class Golden(NamedTuple):
    """What transformers replies at fp32, from the base and with an adapter on top."""

    base: list[tuple[int, ...]]
    adapter: Path
    tuned: list[tuple[int, ...]]


@pytest.fixture(scope="module")
def golden(smollm2: Path, asks: list[Ask], tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """Made before any server starts: beside one, on two cores, it takes three times as long."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = load(smollm2)
    base = transformers_greedy(model, asks)
    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(r=24, lora_alpha=24, target_modules="all-linear"))
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.01)
    adapter = tmp_path_factory.mktemp("adapter")
    tuned.save_pretrained(adapter)
    return Golden(base, adapter, transformers_greedy(tuned.eval(), asks))


@pytest.fixture(scope="module")
def engine(
    python: Path, biased: Path, golden: Golden, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmEngine]:
    with VllmEngine(biased, python=python, log_dir=tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.mark.vllm
def test_greedy_is_greedy_whatever_the_checkpoint_says(engine: VllmEngine, golden: Golden, asks: list[Ask]) -> None:
    assert vllm_greedy(engine, asks) == golden.base
    assert any(len(reply) < 32 for reply in golden.base)  # some ended by themselves, so the end is compared too


@pytest.mark.vllm
def test_text_is_what_the_tokenizer_makes_of_the_ids(engine: VllmEngine, smollm2: Path, asks: list[Ask]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for reply in engine.generate(asks, GREEDY):
        assert reply.text == tokenizer.decode(reply.token_ids, skip_special_tokens=True)
        assert reply.truncated == (len(reply.token_ids or ()) == 32)


@pytest.mark.vllm
def test_samples_differ_and_repeat(engine: VllmEngine, asks: list[Ask]) -> None:
    sampling = Sampling(max_new_tokens=12, temperature=1.0)
    four = [asks[4]._replace(number=n) for n in range(4)]
    first, again = ({reply.index: reply.token_ids for reply in engine.generate(four, sampling)} for _ in range(2))
    assert len(set(first.values())) > 1
    assert first == again


@pytest.mark.vllm
def test_only_this_machine_and_only_the_key_get_in(engine: VllmEngine) -> None:
    processes = members(engine.process_group)
    listening = [c.laddr.ip for p in processes for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}
    for path, body in (("models", None), ("completions", b'{"prompt": "hi"}')):
        request = urllib.request.Request(f"{engine.url}/{path}", body, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request)
    key = engine.key.get_secret_value()
    assert key not in engine.log.read_text(errors="replace")
    assert key not in " ".join(word for p in processes for word in p.cmdline())


@pytest.mark.vllm
def test_a_merged_adapter_replies_as_peft_does(
    python: Path, biased: Path, golden: Golden, asks: list[Ask], tmp_path: Path
) -> None:
    with VllmEngine(biased, adapter=golden.adapter, python=python, log_dir=tmp_path) as tuned:
        assert vllm_greedy(tuned, asks) == golden.tuned != golden.base
        group = tuned.process_group
    assert members(group) == []
    assert [path.name for path in tmp_path.iterdir()] == ["vllm.log"]


@pytest.mark.vllm
def test_the_real_server_does_not_outlive_its_starter(python: Path, smollm2: Path, tmp_path: Path) -> None:
    with starter(smollm2, python, tmp_path) as (process, group):
        assert len(members(group)) >= 3
        process.send_signal(signal.SIGKILL)
        assert wait_until(lambda: not members(group), 10)


@pytest.mark.vllm
def test_a_folder_that_is_no_model_fails_fast_and_clean(python: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmevalError, match=r"vLLM did not start: .*Invalid repository ID") as caught:
        VllmEngine(tmp_path / "empty", python=python, log_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]


@pytest.mark.model
def test_merging_keeps_dtype_tokenizer_and_generation_config(biased: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    get_peft_model(load(biased), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    merged = merge_adapter(biased, tmp_path / "adapter", tmp_path / "merged", dtype="bfloat16")
    assert json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"
    assert (merged / "generation_config.json").read_bytes() == (biased / "generation_config.json").read_bytes()
    assert AutoTokenizer.from_pretrained(merged).chat_template == AutoTokenizer.from_pretrained(biased).chat_template
    assert load(merged).dtype == torch.float32
