"""Books: what a run has counted, and whether it adds up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qflow.errors import InternalError
from qflow.graph.plan import Group
from qflow.graph.run import StepStats
from qflow.runtime.board import Board
from qflow.runtime.streaming import ended_early


def first_whole(board: Board, groups: Sequence[Group]) -> int:
    """The first edge of those of which everything was taken: after the last stream that needed no more of its input."""
    early = (number for number, group in enumerate(groups) if group.stream and ended_early(board, number))
    return max(early, default=-1) + 1


def balance(board: Board, names: Sequence[str], first: int = 0) -> None:
    """Raise `InternalError` unless on every edge from ``first`` on as many items were taken as were put."""
    parties = ["source", *names, "consumer"]
    for number, edge in list(enumerate(board.edges))[first:]:
        if edge.total[0] - 1 != edge.taken[0]:
            between = f"{parties[number]} and {parties[number + 1]}"
            raise InternalError(f"Accounts do not balance between {between}: {edge.total[0] - 1} sent, {edge.taken[0]} received.")


def statistics(
    board: Board,
    groups: Sequence[Group],
    seconds: float,
    failed: Mapping[tuple[int, str], int],
    died: Mapping[int, int],
    recycled: Mapping[int, int],
) -> list[StepStats]:
    """The counts of every step after so many seconds; ``failed`` by group and step, the others by group."""
    found = []
    for number, group in enumerate(groups):
        first = board.edges[number + 1].first
        counts = [board.counts[who] for who in range(first, first + group.n)]
        busy, items, results, retried = (sum(each[k] for each in counts) for k in range(board.COUNTS))
        ends = retried, died.get(number, 0), recycled.get(number, 0)
        steps = [(group.name, group.n, items, results, busy, sum(failed[each] for each in failed if each[0] == number))]
        for k, part in enumerate(group.parts):
            at = board.COUNTS + k * board.OF_PART
            busy, items, results = (sum(each[at + word] for each in counts) for word in range(board.OF_PART))
            steps[k:] = [(part.name, part.n, items, results, busy, failed.get((number, part.name), 0))]
        for name, n, items, results, busy, failures in steps:
            share = busy / 1e9 / max(1e-9, seconds) / n
            found.append(StepStats(name, n, items, results, busy / 1e9, share, failures, *ends))
            ends = 0, *ends[1:]  # tries are the first one's
    return found
