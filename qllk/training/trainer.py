"""Training is an iterator: one `next(trainer)` is one step and returns one record.

The trainer starts no thread, draws no widget and prints nothing. Commands (learning rate, batch,
precision, device) may be submitted from any thread; they wait, act between two steps, and are
logged with their step. The batch of step n and its dropout masks depend on (seed, n) only, so the
step number is the position in the data, and a run replayed from its log is the same run: on CPU,
bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from .. import probes
from ..checks import as_plain, check_positive, check_range, check_rate, look_up
from ..model.families import build, eval_mode, sketch
from ..presets import PRESETS, find_spec, name_of
from ..probes import evaluate
from ..spec import Spec
from ..text.corpora import Corpus
from ..text.objectives import Batch, count_targets, next_token, token_losses
from ..text.windows import Documents, sample_windows
from . import costs, devices, float8, optim, parallel
from .place import Place, check_memory, check_parity, move_to
from .questions import check_corpus, fit_vocabulary, question_of
from .recipe import Recipe, Record, check_micro_batches
from .snapshot import restore_snapshot, take_snapshot

_LATE = 0.75  # the progress from which windows are read one after another, if the recipe says so
_PROBE_EVERY = 25  # steps between two measurements of the state, which take a third of a step
_SNAPSHOT_EVERY = 100  # steps between two snapshots that a diverged run can return to


class Diverged(FloatingPointError):
    """The loss or the gradient is no longer finite."""


class Trainer:
    """An iterator over training steps.

        for record in Trainer("qllk-3", corpus("stdlib"), Recipe(**recipe_of("qllk-3"))): ...

    Args        what     a preset's name, a Spec, the path of a Spec's JSON, or any module that maps
                         ids (B,T) to logits (B,T,vocab_size); a module is trained in place. A
                         preset's vocabulary grows to fit the corpus
                clock    measures the seconds of a step
    Attributes  model, spec (None for a module without one), name, question, corpus, recipe
                window         ids per row: the recipe's, or the model's context if that is shorter
                place          device and precision
                documents      those that are kept apart, if the recipe says so
                processes      this process among those that torchrun has started
                step, bytes_seen, seconds, lr, batch, log ([step, name, value] of each command)
                last_refusal   why the last command was refused, or None
    Raises      ValueError when the window is longer than the corpus, the vocabulary too small, the
                model larger than the memory, or the machine lacks the device or the precision
    """

    @devices.own_conditions()
    def __init__(
        self,
        what: str | Path | Spec | nn.Module,
        corpus: Corpus,
        recipe: Recipe = Recipe(),
        *,
        clock: Callable[[], float] = time.perf_counter,
    ):
        devices.retain_freed_memory()
        device = devices.require(recipe.device, recipe.precision)
        if recipe.compile:
            devices.check_compiler(device)
        self.recipe = recipe
        if isinstance(what, nn.Module):
            plan, self.spec = what, getattr(what, "spec", None)
        else:
            self.spec = find_spec(what)
            if isinstance(what, str) and what in PRESETS:
                self.spec = fit_vocabulary(
                    self.spec, recipe.window, corpus.tokenizer, recipe.question
                )
            plan = sketch(self.spec)  # so that a model that is too large is refused unbuilt
        self.name = name_of(self.spec) if self.spec else type(what).__name__
        self.question = question_of(plan, recipe.question)
        check_memory(plan, device)
        spec, window = self.spec, recipe.window
        self._rows_per_window, self.window = spec.split_window(window) if spec else (1, window)
        self.corpus = corpus.require(self.window)
        self._check_vocabulary()
        check_corpus(recipe.question, corpus, self.window)
        self.processes = parallel.current()
        parallel.check(plan, recipe, self._rows_per_window)
        self.documents = _find_documents(plan, corpus) if recipe.documents else None
        self.check_batch(recipe.batch, device, recipe.precision)
        model = what if isinstance(what, nn.Module) else build(self.spec, seed=recipe.seed)
        parallel.split(model, recipe.parallel, device)
        self.model = float8.convert(
            model.to(device), recipe.matmul, device=device, precision=recipe.precision
        )
        self.optimizer = optim.build_optimizer(
            recipe.optimizer,
            self.model,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            table_lr=recipe.table_lr,
        )
        self.place = Place(self.model, device, recipe.precision, recipe)
        self.lr, self.batch = recipe.lr, recipe.batch
        self.step, self.bytes_seen, self.seconds = 0, 0, 0.0
        self.state_rms: dict[str, float] = {}
        self.rows_in_use: dict[str, float] = {}
        self.state_bytes = 0
        self.log: list[list] = []
        self.pending: deque[tuple[int | None, str, object]] = deque()
        self.last_refusal: str | None = None
        self._carry = self._longest_carry()
        self._remembered: tuple = (None, None, None)  # step, shape of the text read, state after it
        self._clock = clock
        self.last_good = take_snapshot(self)

    def _longest_carry(self):
        """The windows that are read one after another: 1 without a recall that can be carried."""
        if not hasattr(self.model, "remember") or self.model.recall is None:
            return 1
        return min(self.recipe.carry, (len(self.corpus.train) - 1) // self.window)

    def _check_vocabulary(self):
        ids = self.corpus.tokenizer.vocab_size
        needed = self.question.vocabulary(self.window, ids)
        if self.spec and self.spec.vocab_size < needed:
            raise ValueError(
                f"corpus {self.corpus.name!r} has {ids} different ids; with a window of "
                f"{self.window} this {self.spec.family} needs a vocabulary of {needed}, but has "
                f"{self.spec.vocab_size}. Use `questions.fit_vocabulary(spec, window, tokenizer)`, "
                "or a corpus with fewer ids"
            )

    def check_batch(self, batch: int, device: str, precision: str) -> None:
        """Refuse a batch that has fewer rows than micro-batches, or does not fit in memory.

        Raises   ValueError
        """
        check_micro_batches("command", batch, self.recipe.accumulate)
        costs.check_batch(None, self.window, batch * self._rows_per_window, device)  # its ids
        rows = -(-batch // self.recipe.accumulate) * self._rows_per_window
        if not self.recipe.recompute:  # which keeps much less
            share = 1.0 if precision == "float32" else 0.5
            costs.check_batch(self.spec, self.window, rows, device, share)

    # ------------------------------------------------------------ commands

    def submit(self, name: str, value, at: int | None = None) -> None:
        """Submit a command, a row of COMMANDS, from any thread.

        It takes effect before the next step, or, if `at` is given, once `at` steps are done.

        Raises   ValueError when there is no such command or the value is invalid
        """
        value, at = as_plain(value), as_plain(at)
        look_up(COMMANDS, name, "command").check(value)
        if at is not None:
            check_range("the step of a command", at, int, 2**63 - 1)
        self.pending.append((at, name, value))

    def replay(self, log: list[list]) -> None:
        """Submit every command of another run's log, each at its own step."""
        for step, name, value in log:
            self.submit(name, value, at=step)

    def _run_commands(self):
        refusals = []
        for _ in range(len(self.pending)):
            at, name, value = self.pending.popleft()
            if at is not None and at > self.step:
                self.pending.append((at, name, value))
                continue
            try:
                self.act(name, value)
            except (ValueError, RuntimeError) as error:
                refusals.append(f"{name} {value!r} was refused: {error}")
            else:
                self.last_refusal = None
        if refusals:
            self.last_refusal = "; ".join(refusals)

    def act(self, name: str, value) -> None:
        """Carry out a command between two steps, in the thread that trains, and log it.

        Raises   ValueError, RuntimeError when it is refused; nothing has then changed
        """
        COMMANDS[name].act(self, value)
        self.log.append([self.step, name, value])

    # ------------------------------------------------------------ one step

    def __iter__(self):
        return self

    @devices.own_conditions()
    def __next__(self) -> Record:
        """Run the commands that are due, then make one update.

        Raises   StopIteration when the budget is spent
                 Diverged when the loss is not finite. The weights, the optimizer and the step are
                 then those of the last good snapshot, from which the run can continue, best with a
                 lower learning rate
        """
        self._run_commands()
        if self.progress >= 1.0:
            raise StopIteration
        start, lr = self._clock(), self.current_lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch, before, counts = self._draw_batch()
        nats, precision = self._backward(batch, before, counts)
        grad_norm = self._clip_gradients(nats, lr)
        with defer_interrupts():  # half an update is neither the old model nor the new one
            self.place.scaler.step(self.optimizer)
            self.place.scaler.update()
            devices.synchronize(self.place.device)
            spent = self.processes.largest(self._clock() - start, self.place.device)
            self.step += 1
            self.bytes_seen += self.bytes_per_step
            self.seconds += spent
        if self.step % _PROBE_EVERY == 1:
            self._probe_state(batch)
        return Record(
            step=self.step,
            bytes_seen=self.bytes_seen,
            nats=nats,
            bits_per_byte=nats / evaluate.LN2,
            valid_nats=self.validate() if self.step % self.recipe.validate_every == 0 else None,
            lr=lr,
            grad_norm=grad_norm,
            step_seconds=spent,
            bytes_per_second=self.bytes_per_step / max(spent, 1e-9),
            state_rms=self.state_rms,
            rows_in_use=self.rows_in_use,
            state_bytes=self.state_bytes,
            device=str(batch.targets.device),
            precision=precision,
        )

    @property
    def progress(self) -> float:
        """The fraction of the budget that is spent: of `seconds`, or without them of `steps`."""
        if self.recipe.seconds is not None:
            return min(1.0, self.seconds / self.recipe.seconds)
        return min(1.0, self.step / self.recipe.steps)

    @property
    def bytes_per_step(self) -> int:
        """How many bytes of text a step reads."""
        rows = self.batch * self._rows_per_window
        return round(rows * self.window * self.corpus.bytes_per_id)

    @property
    def current_lr(self) -> float:
        """The learning rate of the next step."""
        recipe = self.recipe
        return self.lr * optim.warmup_cosine(
            self.progress, warmup=recipe.warmup, final=recipe.final_lr
        )

    def ask(self, ids: torch.Tensor, generator: torch.Generator) -> Batch:
        """Inputs and targets for windows of the corpus.  Shapes   ids (B,T+1)"""
        return self.question.ask(ids.long(), generator, self.corpus.tokenizer.vocab_size)

    def _draw_batch(self):
        """This process's rows of the next step and the text before them, and the counts of all
        processes, see `_count`. All are functions of the seed and the step.

        Shapes   -> Batch on the device, and ids (B,n) as the corpus has them, n = 0 for the first
                 window of a text; None while every step draws another text
        """
        carry = self._carry if self.progress >= _LATE else 1
        read = self.step % carry  # windows of this text
        generator = torch.Generator().manual_seed(mix_seeds(self.recipe.seed, self.step - read))
        rows, start = self.batch * self._rows_per_window, read * self.window
        ids = sample_windows(self.corpus.train, rows, carry * self.window, generator)
        batch = self.ask(ids[:, start : start + self.window + 1], generator)
        if self.documents:  # without a carry: a recall cannot keep documents apart
            again = torch.Generator().manual_seed(mix_seeds(self.recipe.seed, self.step))
            batch = _keep_apart(ids, sample_windows(self.documents, rows, self.window, again))
        mine, counts = self.processes.share, self._count(batch)
        masks = mix_seeds(self.recipe.seed, ~self.step)
        rank = self.processes.rank
        self.place.masks.manual_seed(mix_seeds(masks, rank) if rank else masks)
        before = None if carry == 1 else mine(ids)[:, :start]
        return Batch(*map(mine, batch)).to(self.place.device), before, counts

    def _count(self, batch) -> tuple[int, int]:
        """The targets of a batch, and those among them that are text."""
        texts = batch.ignore_specials(self.corpus.tokenizer.vocab_size)
        return count_targets(batch.targets), count_targets(texts.targets)

    def _forward(self, inputs, before):
        """The logits of a window, given what a recall knows from the text before it."""
        if before is None:
            return self.place.forward(inputs)
        step, shape, state = self._remembered
        if (step, shape) != (self.step, before.shape):  # such as after a resumed run
            ids = before.long().to(self.place.device)
            state = self.model.remember(ids) if before.shape[1] else None
        logits, state = self.place.forward(inputs, carry=True, state=state)
        after = (before.shape[0], before.shape[1] + self.window)
        self._remembered = self.step + 1, after, state._replace(parts=None)
        return logits

    def _backward(self, batch, before=None, counts=None):
        """Backpropagate the mean loss; return the text's nats per byte and the logits' dtype.

        The mean is taken over all targets of the step, since micro-batches and processes may differ
        in how many they have; `counts` are those of all processes, see `_count`.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        size, nats = self.corpus.tokenizer.vocab_size, 0.0
        count, text = counts or self._count(batch)
        share = count / self.processes.world  # the engines take the mean over the processes
        *first, last = batch.micro_batches(self.recipe.accumulate)
        for part in (*first, last):
            alone = contextlib.nullcontext() if part is last else self.place.without_exchange()
            with alone:
                with self.place.autocast():
                    logits = self._forward(part.inputs, before)
                losses = token_losses(logits, part.targets)
                self.place.scaler.scale(losses.sum() / share).backward()
            nats += (losses.detach() * (part.targets < size)).sum().item() / text
        nats = self.processes.add_up(nats, self.place.device)
        return nats / self.corpus.bytes_per_id, str(logits.dtype).removeprefix("torch.")

    def _clip_gradients(self, nats, lr):
        """Clip the gradient and return its norm; if it is not finite, go back to the snapshot."""
        self.place.scaler.unscale_(self.optimizer)
        norm = optim.clip_gradients(self.model.parameters(), self.recipe.clip)
        # With a loss scaler an overflow is normal: the update is skipped and the scale lowered.
        if not math.isfinite(nats) or not (math.isfinite(norm) or self.place.scaler.is_enabled()):
            self._return_to_snapshot(nats, lr)
        if self.step % _SNAPSHOT_EVERY == 0:
            self.last_good = take_snapshot(self)  # these weights have just given a finite loss
        return norm

    def _probe_state(self, batch):
        """Measure the state after the first row of a batch."""
        with self.place.autocast():
            inputs = batch.inputs[:1] if self.documents else batch.inputs
            state = _final_state(self.model, inputs)
        self.state_rms = probes.state_rms(state)
        self.rows_in_use = probes.rows_in_use(self.model, state)
        self.state_bytes = probes.state_bytes(state)

    def _return_to_snapshot(self, nats, lr):
        failed, peak = self.step, self.lr
        restore_snapshot(self, self.last_good)
        raise Diverged(
            f"at step {failed} the loss is {nats:.4g} and its gradient is not finite, with a "
            f"learning rate of {lr:.2g}. The run is back at step {self.step}, its last good "
            f"snapshot, with a peak rate of {self.lr:.2g}; continue with a lower learning rate, "
            f"for example {min(self.lr, peak / 3):.1g}"
        )

    # ------------------------------------------------------------ evaluation

    def validate(self, limit: int | None = None, window: int | None = None) -> float:
        """Nats per byte on the head of the held-out split.

        `limit` is a number of ids (default: as many as `recipe.validate_bytes`), and `window` the
        ids per row (default: as in training). Masks and removed spans are the same in every call;
        sentinels among the targets do not count.
        """
        return evaluate.mean_loss(*self.loss_by_position(limit, window))

    def evaluation(self) -> Callable[[torch.Tensor], Batch]:
        """A function that asks about held-out windows, in order: (B,T+1) ids to a `Batch`.

        Masks and removed spans are those of every evaluation; sentinels do not count.
        """
        generator = torch.Generator().manual_seed(mix_seeds(self.recipe.seed, 0))
        size = self.corpus.tokenizer.vocab_size
        return lambda ids: self.ask(ids, generator).ignore_specials(size)

    @devices.own_conditions()
    def loss_by_position(
        self, limit: int | None = None, window: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Nats per byte and target counts by position, see `evaluate.loss_by_position`."""
        with self.place.autocast():
            nats, count = evaluate.loss_by_position(
                self.model, self._held_out(limit), window or self.window, ask=self.evaluation()
            )
        return nats / self.corpus.bytes_per_id, count

    @devices.own_conditions()
    def stream_losses(
        self,
        limit: int | None = None,
        *,
        before: np.ndarray | None = None,
        longest: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Nats per byte and target counts by piece of a stream, see `evaluate.stream_losses`."""
        with self.place.autocast():
            nats, count = evaluate.stream_losses(
                self.model, self._held_out(limit), before=before, longest=longest
            )
        return nats / self.corpus.bytes_per_id, count

    def _held_out(self, limit):
        """The head of the held-out split, see `validate`."""
        wanted = round(self.recipe.validate_bytes / self.corpus.bytes_per_id)
        limit = limit or max(2, wanted)  # an id and its target at least
        return self.corpus.valid[:limit]

    # ------------------------------------------------------------ devices

    @devices.own_conditions()
    def move(self, device: str, precision: str) -> None:
        """Continue on another device or in another precision, after a parity check.

        A copy of the model first takes one trial step there. If this raises, nothing has changed.

        Raises   ValueError when this machine lacks either, or the loss differs from float32 on
                 the CPU
                 RuntimeError when the device fails, for example out of memory
        """
        if self.processes.world > 1:
            raise ValueError("a run in several processes stays on its devices")
        device = devices.require(device, precision)
        float8.check(self.recipe.matmul, device, precision)
        ids = torch.from_numpy(self.corpus.train[None, : min(self.window, 256) + 1].copy())
        generator = torch.Generator().manual_seed(mix_seeds(self.recipe.seed, 0))
        check_parity(self.model, self.ask(ids, generator), device, precision)
        parts, home = (self.model, self.optimizer, self.recipe), self.place
        self._remembered = (None, None, None)
        try:
            self.place = move_to(device, precision, *parts)
        except RuntimeError:
            self.place = move_to(home.device, home.precision, *parts)
            raise


# ---------------------------------------------------------------- commands


class _Command(NamedTuple):
    """A change to a run: what makes a value valid, and what it does."""

    check: Callable[[object], None]  # raises ValueError
    act: Callable[[Trainer, object], None]


def _check_name(value):
    if not isinstance(value, str):
        raise ValueError(f"a device or a precision is named by a string, got {value!r}")


def _set_lr(trainer, value):
    trainer.lr = float(value)


def _set_batch(trainer, value):
    trainer.check_batch(value, trainer.place.device, trainer.place.precision)
    trainer.batch = value


def _set_precision(trainer, value):
    trainer.move(trainer.place.device, value)


def _set_device(trainer, value):
    offers = {device.name: device.precisions for device in devices.available()}
    precision = trainer.place.precision
    offered = precision in offers.get(devices.full_name(value), ())
    trainer.move(value, precision if offered else "float32")


COMMANDS = {
    "lr": _Command(lambda value: check_rate("learning rate", value), _set_lr),
    "batch": _Command(lambda value: check_positive("command", batch=value), _set_batch),
    "precision": _Command(
        _check_name, _set_precision
    ),  # whether the machine has it is checked on the run
    "device": _Command(_check_name, _set_device),
}


# ---------------------------------------------------------------- helpers


def _find_documents(model, corpus) -> Documents:
    """The documents of a corpus, for a model that can keep them apart.

    Raises   ValueError when one of them cannot
    """
    if corpus.ends is None:
        raise ValueError(
            f"documents=True keeps the files of a folder apart, in bytes; {corpus.name!r} is a "
            "single text, or in the ids of a tokenizer"
        )
    ids = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    try:
        with torch.no_grad():
            model(ids, documents=ids)
    except TypeError:
        raise ValueError(f"{type(model).__name__} takes no documents to keep apart") from None
    return Documents(corpus.ends)


def _keep_apart(ids, documents) -> Batch:
    """Predict the next id from those of the same document.  Shapes   both (B,T+1)"""
    batch = next_token(ids.long(), documents)
    return Batch((*batch.inputs, documents[:, :-1]), batch.targets)


def _final_state(model, inputs):
    """The state after the first row of a batch, or None for a model that carries no state."""
    inputs = [ids[:1] for ids in inputs]
    with eval_mode(model):
        if hasattr(model, "final_state"):
            return model.final_state(*inputs)
        return model.run(*inputs)[1] if hasattr(model, "run") else None


@contextlib.contextmanager
def defer_interrupts():
    """Hold back Ctrl-C until the end of the block. Only the main thread receives signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = []
    usual = signal.signal(signal.SIGINT, lambda *args: received.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual or signal.SIG_DFL)
        if received:
            signal.raise_signal(signal.SIGINT)


def mix_seeds(seed: int, step: int) -> int:
    """One 63-bit seed from two numbers; neighbours give unrelated seeds (splitmix64).

    Of the recipe's seed and the steps done, it seeds the generator that draws the next windows.
    """
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % (1 << 64)
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % (1 << 64)
    return (z ^ (z >> 31)) >> 1
