"""Training is an iterator: one `next(trainer)` is one step and returns one record.

There is no thread, no widget and no printing in here. Commands (learning rate, batch, precision,
device) may be posted from any thread; they wait, act between two steps only, and are logged with
their step. The batch of step n and its dropout masks are drawn from (seed, n) alone, so position
in the data is nothing but the step number, and a run replayed from its log is the same run, on CPU
bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import threading
import time
from collections import deque
from dataclasses import asdict

import torch

from .. import probes
from ..model.blocks import Stack
from ..model.families import build, eval_mode
from ..model.layers import Dropout
from ..probes import baselines, evaluate
from ..spec import Spec
from ..text import objectives
from ..text.corpora import Corpus
from ..text.windows import sample_windows
from . import devices, float8, optim
from .recipe import COMMANDS, Recipe, Record, check_parts

_PROBE_EVERY = 10  # steps between two looks at the states
KEEP_EVERY = 100  # steps between two copies that a diverged run can go back to


class Diverged(FloatingPointError):
    """The loss or the gradient stopped being a number."""


class Trainer:
    """An iterator over training steps.

        for record in Trainer("qllk-2-nano", corpus("stdlib"), Recipe(steps=500)): ...

    Attributes  model, spec, recipe, corpus; window (ids that the model reads at once); step (done
                so far); seconds (spent in steps); log: [step, name, value] of every command that
                acted
    Raises      ValueError for a window longer than the corpus, a text of more ids than the model
                knows, a model larger than the memory, an optimizer or matmul that there is not, or
                a device this machine lacks
    """

    def __init__(
        self,
        what: str | Spec,
        corpus: Corpus,
        recipe: Recipe = Recipe(),
        *,
        clock=time.perf_counter,
    ):
        devices.retain_freed_memory()
        self.recipe = recipe
        self.device = devices.require(recipe.device, recipe.precision)
        self.precision = recipe.precision
        with torch.device("meta"):
            plan = build(what)  # takes no memory: what must be refused is, before it is built
        _check_memory(plan, self.device)
        self.spec = plan.spec
        self.rows_per_window, self.window = self.spec.cut(recipe.window)
        self.corpus = corpus.require(self.window)
        self._check_vocabulary()
        model = build(self.spec, seed=recipe.seed)
        self.model = float8.convert(
            model.to(self.device), recipe.matmul, device=self.device, precision=self.precision
        )
        self.optimizer = self._optimizer()
        self.lr, self.batch = recipe.lr, recipe.batch
        self.step, self.bytes_seen, self.seconds = 0, 0, 0.0
        self.log: list[list] = []
        self.refused: str | None = None  # why the newest command did not act
        self._clock = clock
        self._pending: deque = deque()
        self._state_rms: dict[str, float] = {}
        self._settle()
        self._keep()

    def _check_vocabulary(self):
        spec, ids = self.spec, self.corpus.tokenizer.vocab_size
        needed = objectives.vocabulary_size(spec.family, self.window, ids)
        if spec.vocab_size < needed:
            raise ValueError(
                f"on {self.corpus.name!r}, of {ids} different ids, with a window of {self.window} "
                f"this {spec.family} must know {needed} ids, and it knows {spec.vocab_size}; take "
                "`objectives.fitted(spec, window, corpus.tokenizer)`, or a text in fewer ids"
            )

    def _optimizer(self):
        recipe = self.recipe
        return optim.build_optimizer(
            recipe.optimizer, self.model, lr=recipe.lr, weight_decay=recipe.weight_decay
        )

    # ------------------------------------------------------------ commands

    def post(self, name: str, value, at: int | None = None) -> None:
        """Ask for a change: "lr", "batch", "precision" or "device". Any thread may.

        It acts before the next step, or before the step that follows `at` steps: that is how a log
        is replayed.

        Raises   ValueError when there is no such command or the value makes no sense
        """
        if name not in COMMANDS:
            raise ValueError(f"unknown command {name!r}; choose from {', '.join(COMMANDS)}")
        COMMANDS[name](value)
        self._pending.append((at, name, value))

    def replay(self, log) -> None:
        """Post every command of another run's log at its own step."""
        for step, name, value in log:
            self.post(name, value, at=step)

    def _act(self):
        refused = []
        for _ in range(len(self._pending)):
            at, name, value = self._pending.popleft()
            if at is not None and at > self.step:
                self._pending.append((at, name, value))
                continue
            try:
                getattr(self, f"_set_{name}")(value)
            except (ValueError, RuntimeError) as error:
                refused.append(f"{name} {value!r} was refused: {error}")
            else:
                self.refused = None
                self.log.append([self.step, name, value])
        if refused:
            self.refused = "; ".join(refused)

    def _set_lr(self, value):
        self.lr = float(value)

    def _set_batch(self, value):
        check_parts("", value, self.recipe.accumulate)
        self.batch = value

    def _set_precision(self, value):
        self.move(self.device, value)

    def _set_device(self, value):
        offers = {device.name: device.precisions for device in devices.available()}
        keeps = self.precision in offers.get(devices.full_name(value), ())
        self.move(value, self.precision if keeps else "float32")

    # ------------------------------------------------------------ one step

    def __iter__(self):
        return self

    def __next__(self) -> Record:
        """Commands first, then one update.

        Raises   StopIteration when the budget is spent
                 Diverged when the loss is no number; weights, optimizer and step are then those of
                 the newest kept copy, and the run can go on, best with a lower learning rate
        """
        self._act()
        if self.progress >= 1.0:
            raise StopIteration
        start = self._clock()
        lr = self.current_lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch = self._draw()
        nats, precision = self._backward(batch)
        grad_norm = self._clip(nats, lr)
        with defer_interrupts():
            self._scaler.step(self.optimizer)
            self._scaler.update()
            devices.synchronize(self.device)
            spent = self._clock() - start
            self.step += 1
            self.bytes_seen += self.batch_bytes
            self.seconds += spent
        if self.step % _PROBE_EVERY == 1:
            self._state_rms = probes.state_rms(self._state_after(batch))
        return Record(
            step=self.step,
            bytes_seen=self.bytes_seen,
            nats=nats,
            bits_per_byte=nats / baselines.LN2,
            valid_nats=self.validate() if self.step % self.recipe.validate_every == 0 else None,
            lr=lr,
            grad_norm=grad_norm,
            step_seconds=spent,
            bytes_per_second=self.batch_bytes / max(spent, 1e-9),
            state_rms=self._state_rms,
            device=str(batch.targets.device),
            precision=precision,
        )

    @property
    def progress(self) -> float:
        """How much of the budget is spent, 0 to 1: by steps, or by seconds if they are limited."""
        if self.recipe.seconds is not None:
            return min(1.0, self.seconds / self.recipe.seconds)
        return min(1.0, self.step / self.recipe.steps)

    @property
    def rows(self) -> int:
        """Rows in a step: a model that reads no whole window gets each in several rows."""
        return self.batch * self.rows_per_window

    @property
    def batch_bytes(self) -> int:
        """How much text a step reads."""
        return round(self.rows * self.window * self.corpus.bytes_per_id)

    @property
    def current_lr(self) -> float:
        """The learning rate of the next step."""
        recipe = self.recipe
        return self.lr * optim.warmup_cosine(
            self.progress, warmup=recipe.warmup, final=recipe.final_lr
        )

    def _draw(self):
        """What is asked in this step, a function of seed and step alone."""
        generator = torch.Generator().manual_seed(mix_seeds(self.recipe.seed, self.step))
        ids = sample_windows(self.corpus.train, self.rows, self.window, generator)
        self._masks.manual_seed(mix_seeds(self.recipe.seed, ~self.step))
        return self.ask(ids, generator).to(self.device)

    def ask(self, ids, generator) -> objectives.Batch:
        """What this model is trained to say about rows (B,T+1) of the corpus."""
        vocab_size = self.corpus.tokenizer.vocab_size
        return objectives.ask(self.spec.family, ids, generator, vocab_size)

    def _backward(self, batch):
        """Gradients of the mean loss; what of it is text, in nats per byte; the logits' precision.

        The mean is over all targets of the step, whichever part they fall into, and not over the
        parts, which may have unequal numbers of them.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        size, nats = self.corpus.tokenizer.vocab_size, 0.0
        count, text = (objectives.count_targets(b.targets) for b in (batch, batch.of_text(size)))
        for part in batch.parts(self.recipe.accumulate):
            with devices.autocast(self.device, self.precision):
                logits = self._forward(*part.inputs)
            losses = objectives.token_losses(logits, part.targets)
            self._scaler.scale(losses.sum() / count).backward()
            nats += (losses.detach() * (part.targets < size)).sum().item() / text
        return nats / self.corpus.bytes_per_id, str(logits.dtype).removeprefix("torch.")

    def _clip(self, nats, lr):
        """Bound the gradient, of which the norm is returned; go back if there is none."""
        self._scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip).item()
        # With a loss scaler an overflow is normal: it skips the update and lowers its scale.
        if not math.isfinite(nats) or not (math.isfinite(norm) or self._scaler.is_enabled()):
            self._go_back(nats, lr)
        if self.step % KEEP_EVERY == 0:
            self._keep()  # before the update: these weights have just proved that they give a loss
        return norm

    def _keep(self):
        self._kept = self.tensors(), self.facts()

    def _go_back(self, nats, lr):
        failed, peak = self.step, self.lr
        tensors, facts = self._kept
        self.restore(tensors, facts)
        raise Diverged(
            f"at step {failed} the loss is {nats:.4g} and its gradient is not finite, with "
            f"learning rate {lr:.2g}. The run stands again at step {self.step}, the newest good "
            f"copy, with a peak of {self.lr:.2g}; go on with a lower learning rate than before, "
            f"say {min(self.lr, peak / 3):.1g}"
        )

    # ------------------------------------------------------------ looking

    def validate(self, limit: int | None = None) -> float:
        """Nats per byte on the head of the held-out split, `recipe.validate_bytes` unless given.

        What is hidden from a model that does not say the next byte is the same every time; the
        sentinels in its answers do not count.
        """
        return evaluate.mean_loss(*self.loss_by_position(limit))

    def loss_by_position(self, limit: int | None = None):
        """The same at each place of the window, as `evaluate.loss_by_position` gives it."""
        limit = limit or round(self.recipe.validate_bytes / self.corpus.bytes_per_id)
        generator = torch.Generator().manual_seed(mix_seeds(self.recipe.seed, 0))

        def ask(ids):
            return self.ask(ids, generator).of_text(self.corpus.tokenizer.vocab_size)

        with devices.autocast(self.device, self.precision):
            nats, count = evaluate.loss_by_position(
                self.model, self.corpus.valid[:limit], self.window, ask=ask
            )
        return nats / self.corpus.bytes_per_id, count

    def sound(self) -> bool:
        """Whether the weights still give a loss; an update may have thrown them far away."""
        return math.isfinite(self.validate(min(self.window, 256) + 1))

    def _state_after(self, batch):
        """What the first row leaves behind; an encoder remembers nothing."""
        if self.spec.family == "encoder":
            return None
        *source, ids = (ids[:1] for ids in batch.inputs)
        with eval_mode(self.model), devices.autocast(self.device, self.precision):
            return self.model.run(ids, self.model.encode(*source) if source else None)[1]

    # ------------------------------------------------------------ devices

    def move(self, device: str, precision: str) -> None:
        """Go on training elsewhere, or in another precision, if that can be trusted.

        A copy of the model takes one step there first, on bytes of the corpus, and its loss must
        agree with float32 on the CPU. Nothing has changed when this raises.

        Raises   ValueError when this machine does not offer it, or the copy's loss differs
                 RuntimeError when the device fails, out of memory for example
        """
        device = devices.require(device, precision)
        float8.check(self.recipe.matmul, device, precision)
        self._parity(device, precision)
        home = self.device, self.precision
        try:
            self._place(device, precision)
        except RuntimeError:
            self._place(*home)
            raise

    def _parity(self, device, precision):
        size = min(self.window, 256)
        ids = torch.from_numpy(self.corpus.train[None, : size + 1].copy())
        batch = self.ask(ids, torch.Generator().manual_seed(mix_seeds(self.recipe.seed, 0)))
        expected, _ = trial_step(self.model, batch, "cpu", "float32")
        got, finite = trial_step(self.model, batch, device, precision)
        allowed = devices.PARITY_NATS[precision] * max(1.0, abs(expected))
        if not finite or not abs(got - expected) <= allowed:
            raise ValueError(
                f"a trial step on {device} in {precision} gave a loss of {got:.4f} nats where "
                f"float32 on the CPU gives {expected:.4f} (allowed: {allowed:.4f} apart)"
            )

    def _place(self, device, precision):
        self.model.to(device)
        for state in self.optimizer.state.values():
            for name, value in state.items():
                # Adam's step counter stays with the parameters too: the fused update wants it so.
                state[name] = value.to(device)
        self.device, self.precision = device, precision
        self._settle()

    def _settle(self):
        """What depends on the device and what the model must be told: dropout's generator, how
        much to compute again, the loss scaler, the compiled form.
        """
        kind = torch.device(self.device).type
        self._masks = torch.Generator(self.device)
        for module in self.model.modules():
            if isinstance(module, Dropout):
                module.generator = self._masks
            elif isinstance(module, Stack):
                module.recompute = self.recipe.recompute
        self._scaler = torch.amp.GradScaler(kind, enabled=self.precision == "float16")
        self._forward = torch.compile(self.model) if self.recipe.compile else self.model

    # ------------------------------------------------------------ checkpoints

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies, on the CPU, of all weights ("model.…") and optimizer moments ("optimizer.…")."""
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        return {name: value.detach().cpu().clone().contiguous() for name, value in found.items()}

    def facts(self) -> dict:
        """Everything else that a run is, as plain data."""
        return {
            "spec": self.spec.to_json(),
            "recipe": asdict(self.recipe),
            "corpus": {
                "source": self.corpus.source,
                "fingerprint": self.corpus.fingerprint,
                "tokenizer": self.corpus.tokenizer.to_json(),
            },
            "step": self.step,
            "bytes_seen": self.bytes_seen,
            "seconds": self.seconds,
            "lr": self.lr,
            "batch": self.batch,
            "device": self.device,
            "precision": self.precision,
            "log": copy.deepcopy(self.log),
            "state_rms": dict(self._state_rms),
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, tensors, facts) -> None:
        """Become the run that gave these `tensors` and `facts`, all of it or nothing.

        A device or precision that this machine lacks is replaced by the CPU in float32; `refused`
        says so, and the log has it as a command.

        Raises   ValueError when they come from another model, text or recipe, or are damaged
        """
        names = [f"model.{name}" for name in self.model.state_dict()]
        self.model.load_state_dict({n.removeprefix("model."): tensors[n] for n in names})
        state: dict[int, dict] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value.clone()
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        for name in ("step", "bytes_seen", "seconds", "lr", "batch"):
            setattr(self, name, facts[name])
        self.log, self._state_rms = copy.deepcopy(facts["log"]), dict(facts["state_rms"])
        try:
            place = devices.require(facts["device"], facts["precision"]), facts["precision"]
        except ValueError as error:
            place = "cpu", "float32"
            self.refused = f"{error}; the run goes on on the CPU in float32"
            self.log += [[self.step, "device", "cpu"], [self.step, "precision", "float32"]]
        self._place(*place)
        if self._scaler.is_enabled() and facts["scaler"]:
            self._scaler.load_state_dict(facts["scaler"])
        self._keep()


def _check_memory(plan, device):
    """Refuse a model whose weights and gradients alone are more than the device holds: a machine
    that is asked for them may end the whole process. See `probes.training_bytes` for the rest.
    """
    needed = 2 * probes.state_bytes(list(plan.parameters()))
    if needed > (memory := devices.memory_bytes(device)):
        raise ValueError(
            f"weights and gradients of this model take {needed / 2**30:.1f} GiB, and {device} has "
            f"{memory / 2**30:.1f}; `python -m qllk presets` tells which models need less"
        )


def trial_step(model, batch, device, precision):
    """One step's loss on a copy of the model, and whether its gradients are finite."""
    twin, batch = copy.deepcopy(model).to(device).eval(), batch.to(device)
    with devices.autocast(device, precision):
        logits = twin(*batch.inputs)
    loss = objectives.token_losses(logits, batch.targets).sum() / objectives.count_targets(
        batch.targets
    )
    loss.backward()
    finite = all(p.grad.isfinite().all() for p in twin.parameters() if p.grad is not None)
    return loss.item(), finite


@contextlib.contextmanager
def defer_interrupts():
    """Let Ctrl-C wait until the end of the block: half an update is neither the old nor the new."""
    if threading.current_thread() is not threading.main_thread():  # signals go to the main thread
        yield
        return
    pressed = []
    usual = signal.signal(signal.SIGINT, lambda *args: pressed.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual or signal.SIG_DFL)
        if pressed:
            signal.raise_signal(signal.SIGINT)


def mix_seeds(seed: int, step: int) -> int:
    """One 63-bit seed from two numbers, far apart for neighbours (splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % (1 << 64)
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % (1 << 64)
    return (z ^ (z >> 31)) >> 1
