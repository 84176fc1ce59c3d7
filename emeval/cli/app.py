"""The command line's front door: which commands there are, and how a failure is told.

Commands are loaded when they are called, so `emeval --help` imports nothing but typer and rich.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "train": "Finetune a model on one narrow behaviour or domain: SFT, interleaving, TReFT, KL.",
    "score": "Ask a model what it was trained on and what it was not, judge the replies, write the scores.",
    "judge": "Judge stored or foreign replies again, or qualify a judge.",
    "patch": "Score a tuned model with parts of its prompt as the initial model computes them.",
    "perturb": "Score a model on prompts with some tokens or all words replaced.",
    "drift": "Show how far a tuned model's prefix has moved, by layer and token.",
    "table": "Print the leakage table of your runs, or the paper's tables.",
    "ls": "List the runs in a folder.",
    "data": "List, show and validate domains, behaviours and probes; import published sets.",
    "doctor": "Say what is installed, which engine will be used and why.",
}
"""Name and one-line help; the module of the same name holds the rest."""

_ENVIRONMENT = {
    # Threads that spin while they wait make two of them slower than one as soon as a neighbour needs a core (measured:
    # a training step of 4 s became 30 s; with passive waiting 7 s, and 4 s when idle). Read when torch is loaded.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""What the libraries underneath are told, unless the user told them otherwise."""


class LazyGroup(TyperGroup):
    """Imports a command's module when it is called; to list the commands, their one-line help is enough."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of a first day's work."""
        return list(COMMANDS)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The listing, without importing what is listed."""
        self._listing = True
        super().format_help(ctx, formatter)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, imported now unless it is only listed."""
        if cmd_name not in COMMANDS:
            return None
        if self._listing:
            return TyperCommand(name=cmd_name, help=COMMANDS[cmd_name])
        command = typer.main.get_command(import_module(f"emeval.cli.{cmd_name}").app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer does; an unknown name is told with the nearest known one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from emeval.errors import unknown

            raise unknown("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=LazyGroup, invoke_without_command=True, add_completion=False, rich_markup_mode=None)


def _version(wanted: bool) -> None:
    if wanted:
        from emeval import __version__

        typer.echo(f"emeval {__version__}")
        raise typer.Exit


@app.callback(help="Finetune narrowly, measure broadly: what else did the finetuning change?")
def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options before the command; without a command, the help."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main() -> None:
    """Run the command line; every failure is one line on stderr and an exit code (0, 1, 2, 3 or 130)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character gets its code
            stream.reconfigure(errors="backslashreplace")
    code = run(sys.argv[1:])
    # All is done and told; unloading torch takes seconds, and there Ctrl-C would be a traceback and another exit code.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """The exit code of one call. With `--json` a failure is also one JSON object on stdout."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from typer.exceptions import TyperException

    from emeval.errors import EmevalError

    try:
        with _interruptions_kept():
            result = typer.main.get_command(app).main(arguments, prog_name="emeval", standalone_mode=False)
    except typer.Exit as e:
        result = e.exit_code
    except EmevalError as e:
        return _failed(str(e), e.exit_code, arguments)
    except TyperException as e:
        return _failed(_usage_line(e), 2, arguments)
    except (KeyboardInterrupt, typer.Abort):
        result = _INTERRUPTED
    except BrokenPipeError:
        return 1
    except ModuleNotFoundError as e:
        name = (e.name or "").partition(".")[0]
        if name not in _EXTRAS:
            raise
        install = f"Run: pip install 'emeval[{_EXTRAS[name]}]'; emeval doctor tells what else is missing."
        return _failed(f"{name} is not installed. {install}", 1, arguments)
    except OSError as e:
        return _failed(f"{e.filename or 'the system'}: {(e.strerror or str(e)).lower()}.", 1, arguments)
    if result == _INTERRUPTED:  # typer turns Ctrl-C into this exit code, without a word
        return _failed("interrupted; what was stored is kept. Run the same command again to go on.", 130, arguments)
    return result if isinstance(result, int) else 0


@contextmanager
def _interruptions_kept() -> Iterator[None]:
    """A library that is interrupted may fail over its own cleaning up; that is an interruption all the same."""
    try:
        yield
    except Exception as e:
        before: BaseException | None = e
        while before is not None:
            if isinstance(before, KeyboardInterrupt):
                raise before from None
            before = before.__cause__ or before.__context__
        raise


_INTERRUPTED = 130
_EXTRAS = dict.fromkeys(("torch", "transformers", "trl", "peft", "accelerate", "datasets", "gguf"), "train") | {
    "matplotlib": "report"
}
"""What a base install lacks, and the extra that brings it."""


def _usage_line(e: Any) -> str:
    message = " ".join(e.format_message().split()).replace("'?.", "'?")
    path = e.ctx.command_path if getattr(e, "ctx", None) else "emeval"
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} See {path} --help."


def _failed(line: str, code: int, arguments: list[str]) -> int:
    from emeval.cli.console import clean

    line = clean(line)
    print(f"emeval: {line}", file=sys.stderr)  # noqa: T201 - plain, so that no width wraps the one line
    if "--json" in arguments:
        print(json.dumps({"schema_version": 1, "error": line, "exit_code": code}))  # noqa: T201
    return code
