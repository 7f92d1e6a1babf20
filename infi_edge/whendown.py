"""What becomes of an input while the server cannot be used."""

from __future__ import annotations

from dataclasses import replace

from infi_edge.config import OffloadConfig
from infi_edge.errors import InfiEdgeError
from infi_edge.gate import Gate
from infi_edge.inflight import Arrival
from infi_edge.late import Late
from infi_edge.served import ModelClient
from infi_edge.types import Action, Result

AWAY = "the server is away"


class Unanswered(InfiEdgeError):
    """An input that got no answer because the server is away."""


class Queued(Unanswered):
    """One that will be answered later."""


def answer_without(
    arrival: Arrival,
    at: str,
    why: InfiEdgeError,
    config: OffloadConfig,
    gate: Gate,
    local: ModelClient | None,
    late: Late | None,
    modality: str,
) -> Result:
    """Answer an input without the server, as its configuration says.

    at: wall time of the input. why: what is wrong with the server. Raises Queued if it is kept for
    later, Unanswered if it is dropped, or what the local model raises.
    """
    look, step = arrival.look, arrival.step
    assert look is not None
    assert step is not None
    sample = arrival.sample
    if config.when_down == "reuse":
        result = gate.last_answer(look, step.decision, AWAY, config.max_stale_s)
        if result is None:
            raise Unanswered(f"{why}; there is no answer young enough to give again")
        return result
    if config.when_down == "local" and local is not None:
        value = local(gate.masked(sample.data))
        decided = step.decision
        return replace(
            Result(value, Action.INFER, f"{AWAY}: answered by {local.served.name}",
                   sample.index, sample.time_s, sample.source, decided.score, decided.p_changed),
            degraded=True,
        )  # fmt: skip
    if config.when_down == "queue" and late is not None:
        if late.put(sample, at, gate.masked(sample.data), modality, str(why)):
            raise Queued(str(why))
        raise Unanswered(f"{why}; {late.spool.sentence or 'the queue is full'}")
    raise Unanswered(str(why))
