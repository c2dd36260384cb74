"""Several processes that train one model together. `torchrun` starts them:

    torchrun --nproc-per-node 4 -m qllk train --batch 8

Every process draws the windows of a step from the same seed and reads its own share of the rows:
rows rank, rank + world, … Together they read what one process would, whatever their number, so a
run can be resumed with more of them or fewer. Between the processes stand torch's own engines,
DistributedDataParallel ("ddp": every process has the whole model) and FSDP2 ("fsdp": each holds a
part of every weight). All do the same, validation included; only the first one writes and prints.

`Piece` cuts one *sequence* over the processes instead, which takes a model whose state is small.

FSDP2 and what it stands on are imported where they are used: they would take most of the time that
`import qllk` takes after `import torch`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..model.attention import CrossAttention
from ..model.blocks import Block
from ..probes.inside import state_tensors
from .optim import find_tables
from .recipe import Recipe


class ProcessEnded(ConnectionError):
    """Another process of a run has ended, or cannot be reached."""


ENGINES = ("ddp", "fsdp")
_ALSO_CALLED = ("run", "encode", "final_state", "init_state")  # of our models, besides `forward`


class Processes(NamedTuple):
    """This process among those that train together."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, rows):
        """This process's rows of a tensor, or of each tensor of a tuple."""
        if isinstance(rows, tuple):
            return tuple(map(self.share, rows))
        return rows[self.rank :: self.world]

    def add_up(self, number: float, device: str) -> float:
        """The sum of a number over all processes."""
        return self._reduce(number, device, dist.ReduceOp.SUM)

    def largest(self, number: float, device: str) -> float:
        """The largest of a number over all processes."""
        return self._reduce(number, device, dist.ReduceOp.MAX)

    def _reduce(self, number, device, how):
        if self.world == 1:
            return number
        total = torch.tensor(number, dtype=torch.float64, device=device)
        dist.all_reduce(total, how)
        return total.item()


def current() -> Processes:
    """The processes that have joined, or this one alone."""
    if not dist.is_initialized():
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the processes that torchrun has started, if it has, to train on this kind of device.

    When another process ends early, so does this one.

    Raises   ProcessEnded when another process has ended or cannot be reached
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise ProcessEnded(
                f"process {current().rank} stopped, because another process of this run has ended "
                "or cannot be reached; start the run again with --resume"
            ) from None
        raise
    finally:
        dist.destroy_process_group()


# ---------------------------------------------------------------- one model in all processes


class _Reader(nn.Module):
    """Reads inputs with a state or without one, by one `forward`, which is what DDP wraps.

    Returns  the logits; with `carry`, the logits and the state
    """

    def __init__(self, model: nn.Module, forward: Callable):
        super().__init__()
        self.model, self._forward = model, forward

    def forward(self, inputs: tuple[Tensor, ...], carry: bool = False, state: object = None):
        return self.model.run(*inputs, state) if carry else self._forward(*inputs)


def check(model: nn.Module, recipe: Recipe, rows_per_window: int) -> None:
    """Check that these processes can train the model together.

    Raises   ValueError for an unknown engine, when there are fewer rows than processes, or when
             FSDP2 is asked to split a model with sparse gradients
    """
    world, rows = current().world, recipe.batch * rows_per_window
    if recipe.parallel not in ENGINES:
        raise ValueError(f"parallel must be one of {', '.join(ENGINES)}, got {recipe.parallel!r}")
    if rows < world * recipe.accumulate:
        raise ValueError(
            f"{world} processes with {recipe.accumulate} micro-batches each need as many rows, but "
            f"a step has {rows}; raise the batch, or start fewer processes"
        )
    if recipe.parallel == "fsdp" and world > 1 and find_tables(model):
        raise ValueError(
            "parallel='fsdp' cannot split tables with sparse gradients, such as hashed n-grams; "
            "use 'ddp'"
        )


def split(model: nn.Module, engine: str, device: str) -> None:
    """Split the weights of a model over the processes, block by block, if the engine is FSDP2."""
    if engine != "fsdp" or (world := current().world) == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(torch.device(device).type, (world,))
    inner = [module for module in model.modules() if isinstance(module, Block | CrossAttention)]
    for module in (*reversed(inner), model):  # a cross-attention before the block around it
        fully_shard(module, mesh=mesh)
        for name in filter(partial(hasattr, module), _ALSO_CALLED):
            register_fsdp_forward_method(module, name)


def connect(model: nn.Module, forward: Callable, engine: str) -> nn.Module:
    """A module that is called as (inputs, state), and whose gradients are the means over all
    processes. `forward` is the model, or its compiled form.
    """
    reader = _Reader(model, forward)
    if current().world == 1 or engine == "fsdp":  # FSDP2 is in the model itself
        return reader
    return DistributedDataParallel(reader)


@contextlib.contextmanager
def without_exchange(reader: nn.Module) -> Iterator[None]:
    """Inside, backward passes only add to this process's own gradients."""
    if isinstance(reader, DistributedDataParallel):
        with reader.no_sync():
            yield
        return
    exchange = getattr(reader.model, "set_requires_gradient_sync", None)  # of FSDP2
    if exchange:
        exchange(False)
    try:
        yield
    finally:
        if exchange:
            exchange(True)


def scatter(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, split as `like` is if it has its shape."""
    if not hasattr(like, "full_tensor") or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)


# ---------------------------------------------------------------- one sequence in all processes


class Piece:
    """This process's piece of a sequence that is cut over all processes.

        piece = Piece(model, ids)                  waits for the state of the process before
        piece.backward(loss(piece.logits))         waits for the gradient of the process after

    Each process reads its piece from the state that the one before hands on, so together they
    compute what one process would, forward and backward, and each holds the activations of its own
    piece only. What travels is the state, whose size does not depend on the sequence in a
    recurrent model. The processes take turns: this saves memory, not time.

    Shapes   ids (B,T) of this process's piece  ->  logits (B,T,vocab_size)
    """

    def __init__(self, model: nn.Module, ids: Tensor):
        self._model, self._processes = model, current()
        self._received = self._receive(-1)
        self._leaves = [t.requires_grad_() for t in _floats(self._received)]
        self.logits, state = model.run(ids, self._received)
        self._handed = _floats(state)
        self._send(_detached(state), +1)

    def backward(self, loss: Tensor) -> None:
        """Add up the gradients of all processes' losses in the weights of each."""
        after = self._receive(+1) or [None] * len(self._handed)
        outputs = [(loss, torch.ones_like(loss)), *zip(self._handed, after, strict=True)]
        outputs = [(y, dy) for y, dy in outputs if y.requires_grad and dy is not None]
        torch.autograd.backward(*zip(*outputs, strict=True))
        self._send([_gradient(leaf) for leaf in self._leaves], -1)
        tables = find_tables(self._model)
        for weights in filter(lambda p: p.requires_grad, self._model.parameters()):
            if weights.grad is None:  # such as those of patches, in a piece without a complete one
                kind = torch.sparse_coo if weights in tables else torch.strided
                weights.grad = torch.zeros_like(weights, layout=kind)
            dist.all_reduce(weights.grad)

    def _receive(self, step):
        """What the process before (-1) or after (+1) sends; None where there is none."""
        other = self._processes.rank + step
        if not 0 <= other < self._processes.world:
            return None
        received = [None]
        dist.recv_object_list(received, other)
        return received[0]

    def _send(self, value, step):
        other = self._processes.rank + step
        if 0 <= other < self._processes.world:
            dist.send_object_list([value], other)


def _floats(state) -> list[Tensor]:
    return [tensor for tensor in state_tensors(state) if tensor.is_floating_point()]


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _detached(state):
    """A copy of nested tuples and lists without the graph of their tensors."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*map(_detached, state))
    return type(state)(map(_detached, state)) if isinstance(state, tuple | list) else state
