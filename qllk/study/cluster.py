"""What a training step costs on many GPUs, on paper: `python -m qllk.study.cluster`.

For P parameters on N processes that train with AdamW in float32, with P, N and B rows of T ids each
in a step, and for one of the processes:

    engine   memory in bytes        bytes sent per step
    ddp      16 P                   2 (N - 1) / N 4 P      all-reduce of the gradients, in a ring
    fsdp     16 P / N + 8 P / L     3 (N - 1) / N 4 P      all-gather of the weights, forward and
                                                           backward, reduce-scatter of the gradients

16 bytes are a weight, its gradient and two moments. FSDP2 gathers one of L layers at a time, with
its gradient. Activations come on top. A step takes 6 P B T / N multiply-adds and additions, so it
lasts at least as long as that takes, and, where sending is not hidden behind computing, at most the
sum of both. The tests compare memory and bytes sent with what 2 and 4 processes really take; there
FSDP2 sends 4 instead of 3 times, since the reduce-scatter of gloo is an all-reduce.

A sequence cut over the processes (`training.parallel.Piece`) sends its state forward and the
state's gradient back: a number of bytes that depends neither on P nor on the length of the text.
"""

from __future__ import annotations

from typing import NamedTuple

from ..checks import check_positive, look_up

_ADAM_BYTES = 16  # a weight, its gradient and two moments in float32
_MOST_TIMES = {"ddp": 2, "fsdp": 3}  # how often all weights or gradients are exchanged
_PARAMETERS, _LAYERS, _IDS = 1_000_000_000, 24, 2**20  # of the printed table; ids in a step
_FLOPS, _SHARE, _LINK = 989e12, 0.4, 50e9  # an H100 in bfloat16, what is reached of it, bytes/s


class ClusterCost(NamedTuple):
    """The cost of a step for one of the processes."""

    memory_bytes: float  # weights, gradients and moments, without activations
    sent_bytes: float

    def seconds(self, parameters: float, ids: float, flops: float, link: float) -> tuple:
        """The shortest and the longest time of a step of `ids` ids: all sending hidden, and none.

        `flops` and `link` are the operations and bytes per second of a process.
        """
        computing, sending = 6 * parameters * ids / flops, self.sent_bytes / link
        return max(computing, sending), computing + sending


def cluster_cost(parameters: float, layers: int, engine: str, world: int) -> ClusterCost:
    """The cost of a step in each of `world` processes.

    Raises   ValueError for an unknown engine, or numbers below 1
    """
    check_positive("cluster_cost", layers=layers, world=world)
    times = look_up(_MOST_TIMES, engine, "engine")
    memory = _ADAM_BYTES * parameters
    if engine == "fsdp" and world > 1:
        memory = memory / world + 8 * parameters / layers
    return ClusterCost(memory, times * (world - 1) / world * 4 * parameters)


def format_table(worlds: tuple[int, ...] = (1, 8, 32, 128, 512)) -> str:
    """The costs of a model of 1B parameters as a Markdown table."""
    lines = [
        "| GPUs | engine | memory, GB | sent per step, GB | seconds per step | ids/s |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for world in worlds:
        for engine in _MOST_TIMES if world > 1 else ["ddp"]:
            cost = cluster_cost(_PARAMETERS, _LAYERS, engine, world)
            least, most = cost.seconds(_PARAMETERS, _IDS / world, _FLOPS * _SHARE, _LINK)
            cells = (
                *(str(world), engine, f"{cost.memory_bytes / 1e9:.1f}"),
                *(f"{cost.sent_bytes / 1e9:.1f}", f"{least:.2f} to {most:.2f}"),
                f"{_IDS / most:,.0f} to {_IDS / least:,.0f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(format_table())
