"""Judging through a vendor's batch API (`--judge-batch`): slower, usually at half the price, nothing paid twice.

The first call goes the ordinary way, to find out what the endpoint takes. Which replies a batch is for is written down
before it is made, and the batch carries a mark made of that: whenever this is killed, the same command finds its batch
at the vendor by the mark, and waits for it, instead of ordering another one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from emeval.engine.remote import Remote
from emeval.errors import EmevalError, InputError
from emeval.store import read_json, sha256_of, write_json
from emeval.types import Record

ROUTE = "/v1/chat/completions"
_MARK = "emeval"
_LOOKED_AT = 500
"""Batches looked through for ours, the newest first."""
_OVER = ("failed", "expired", "cancelled")


class Order(Record):
    """What a batch is for: kept in the run's folder while it is under way."""

    judge: str
    keys: tuple[str, ...] = Field(min_length=1)
    dialect: dict[str, Any] = Field(default_factory=dict)
    """What the endpoint takes, as the first call found out."""

    @property
    def mark(self) -> str:
        """What the vendor's record of the batch carries."""
        return sha256_of(self.judge, *self.keys)[:32]


def order_file(folder: Path, judge: str, probe: str) -> Path:
    """Where a judge's order for a probe is kept."""
    return folder / f"judge-batch-{sha256_of(judge, probe)[:8]}.json"


def read_order(path: Path) -> Order | None:
    """The order that was under way when this was last stopped."""
    return Order.model_validate(read_json(path)) if path.exists() else None


def run_batch(
    remote: Remote,
    path: Path,
    order: Order,
    request: Callable[[str], dict[str, Any] | None],
    *,
    poll: float,
    say: Callable[[str], None],
) -> Iterator[tuple[str, str | None, str]]:
    """Yield, for each key of the order that is under way, its answer's JSON, or None and the reason.

    Args:
        remote: The vendor.
        path: Where the order is kept until all is yielded.
        order: What to order, or what was ordered before.
        request: A key's request body; None for one that has an answer by now.
        poll: Seconds between two looks.
        say: Told that it waits.

    Raises:
        InputError: If the endpoint has no batch API.
        EmevalError: If the batch fails as a whole.
    """
    import openai

    write_json(path, order)
    try:
        with remote.plain_client() as client:
            batch = _find(client, order, remote.url) or _place(client, order, request)
            say(f"Waiting for batch {batch.id} of {len(order.keys)} judge calls; may be stopped and run again")
            while batch.status not in ("completed", *_OVER):
                time.sleep(poll)
                batch = client.batches.retrieve(batch.id)
            if not batch.output_file_id and not batch.error_file_id:
                path.unlink()
                raise EmevalError(f"the batch {batch.id} is {batch.status}", where=remote.url, hint="Run it again")
            answers = dict(_answers(client, batch))
    except openai.OpenAIError as error:
        raise remote.failure(error) from None
    for key in order.keys:
        yield (key, *answers.get(key, (None, f"the batch is {batch.status} without this answer")))
    path.unlink(missing_ok=True)


def _find(client: Any, order: Order, url: str) -> Any | None:
    """The batch of this order, if it was placed before and is not over in vain."""
    import openai

    try:
        for seen, batch in enumerate(client.batches.list(limit=100)):
            useful = batch.status not in _OVER or batch.output_file_id
            if (batch.metadata or {}).get(_MARK) == order.mark and useful:
                return batch
            if seen > _LOOKED_AT:
                break
    except openai.NotFoundError:
        hint = "Leave --judge-batch out"
        raise InputError("the endpoint has no batch API", where=url, hint=hint) from None
    return None


def _place(client: Any, order: Order, request: Callable[[str], dict[str, Any] | None]) -> Any:
    bodies = [(key, request(key)) for key in order.keys]
    lines = [{"custom_id": k, "method": "POST", "url": ROUTE, "body": body} for k, body in bodies if body is not None]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("judge.jsonl", data), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=ROUTE, completion_window="24h", metadata={_MARK: order.mark}
    )


def _answers(client: Any, batch: Any) -> Iterator[tuple[str, tuple[str | None, str]]]:
    """By key, the completion's JSON, or None and why there is none. A line that cannot be read answers nothing."""
    for file in filter(None, (batch.error_file_id, batch.output_file_id)):
        for line in client.files.content(file).text.split("\n"):  # an answer may hold other line ends
            try:
                row = json.loads(line)
                key, response = str(row["custom_id"]), row.get("response") or {}
                done = response.get("status_code") == 200
            except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
                continue
            if done:
                yield key, (json.dumps(response.get("body")), "")
            else:
                said = row.get("error") or response.get("body") or "no reason given"
                yield key, (None, json.dumps(said)[:200])
