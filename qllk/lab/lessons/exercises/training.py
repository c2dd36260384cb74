"""Exercises of lesson 09, Train it: the training loop and its parts."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F

from ....text.corpora import task
from ....text.objectives import token_losses
from ....training import optim
from ....training.recipe import Recipe
from ....training.trainer import Trainer, mix_seeds
from ...exercise import Case, Exercise, normal
from .assembly import Model


def windows(data, starts, window):
    """Inputs and targets: `window` bytes from each start, and the byte after each of them."""
    rows = torch.stack([data[s : s + window + 1] for s in starts.tolist()])
    return rows[:, :-1], rows[:, 1:]


def adamw(w, g, m, v, n, lr, decay, b1=0.9, b2=0.98):
    """The n-th AdamW step of a weight w with the gradient g: the new w, m and v."""
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    step = (m / (1 - b1**n)) / ((v / (1 - b2**n)).sqrt() + 1e-8)
    return w - lr * decay * w - lr * step, m, v


def rate(progress, warmup, final):
    """A share of the peak: linear warm-up, times half a cosine that falls from 1 to `final`."""
    rise = max(0.01, min(1.0, progress / warmup))
    fall = final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
    return rise * fall


def train(model, data, recipe, optimizer):
    """Train a model in place, as a recipe says; the loss of each step."""
    losses = []
    for step in range(recipe.steps):
        generator = torch.Generator().manual_seed(mix_seeds(recipe.seed, step))
        starts = torch.randint(len(data) - recipe.window, (recipe.batch,), generator=generator)
        inputs, targets = windows(data, starts, recipe.window)
        loss = token_losses(model(inputs.long()), targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optim.clip_gradients(model.parameters(), recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * rate(step / recipe.steps, recipe.warmup, recipe.final_lr)
        optimizer.step()
        losses.append(loss.item())
    return losses


# ---------------------------------------------------------------- cases and truths


def _texts(rng):
    for n, rows, window in ((9, 1, 1), (30, 3, 7), (40, 2, 16)):
        data = torch.randint(256, (n,), generator=rng)
        yield Case((data, torch.randint(n - window, (rows,), generator=rng), window))


def _gradients(rng):
    for n, shape, size, lr in ((1, (3,), 1.0, 0.1), (7, (2, 5), 3.0, 0.01), (5, (4,), 1e-8, 0.1)):
        yield Case((normal(rng, *shape), size * normal(rng, n, *shape), lr, 0.3))


def _use_adamw(answer, w, gradients, lr, decay):
    """Take a step with each of the gradients, the moments starting at zero: the last w, m and v."""
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for n, g in enumerate(gradients, 1):
        new = answer(w, g, m, v, n, lr, decay)
        if new is None or not isinstance(new, tuple | list) or len(new) != 3:
            return new
        w, m, v = new
    return w, m, v


def _by_torch(w, gradients, lr, decay):
    w = torch.nn.Parameter(w)
    adam = torch.optim.AdamW([w], lr=lr, betas=(0.9, 0.98), weight_decay=decay)
    for w.grad in gradients:
        adam.step()
    return w, adam.state[w]["exp_avg"], adam.state[w]["exp_avg_sq"]


def _progress(rng):
    for warmup, final in ((0.15, 0.02), (0.5, 1.0), (0.03, 0.0)):
        for progress in (0.0, 0.4 * warmup, warmup, 0.6, 1.0):
            yield Case((progress, warmup, final))


def _runs(rng):
    """Gradients are longer than `clip`. A mean over a power of two is exact, in any order."""
    for steps, batch, window, clip in ((1, 1, 16, 9.0), (6, 2, 16, 0.1), (9, 4, 8, 0.5)):
        fields = {"steps": steps, "batch": batch, "window": window, "clip": clip}
        yield Case((Recipe(**fields, lr=0.02, warmup=0.4, seed=steps),))


def _start(recipe):
    torch.manual_seed(recipe.seed)
    return Model(8, (2, "word"), (3,), 64, 64, layers=1), task("markov", 2048)


def _use_train(answer, recipe):
    """The losses and the weights after a run with an answer."""
    model, text = _start(recipe)
    optimizer = optim.build_optimizer(
        recipe.optimizer, model, lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    losses = answer(model, torch.from_numpy(text.train.copy()), recipe, optimizer)
    try:
        return torch.as_tensor(losses, dtype=torch.float64), _all_weights(model)
    except (TypeError, ValueError, RuntimeError):  # no numbers, such as the None of a stub
        return losses


def _by_trainer(recipe):
    model, text = _start(recipe)
    nats = [record.nats for record in Trainer(model, text, recipe)]
    return torch.tensor(nats, dtype=torch.float64), _all_weights(model)


def _all_weights(model):
    return torch.nn.utils.parameters_to_vector(model.parameters())


# ---------------------------------------------------------------- mistakes


def _wrong_adamw(w, g, m, v, n, lr, decay, b1=0.9, b2=0.98, mistake=""):
    """AdamW with one thing wrong."""
    gradient = g + decay * w if mistake == "l2" else g
    m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
    mean, square = (m, v) if mistake == "biased" else (m / (1 - b1**n), v / (1 - b2**n))
    size = {
        "inside": (square + 1e-8).sqrt(),
        "early": (v.sqrt() + 1e-8) / (1 - b2**n) ** 0.5,
        "no root": square + 1e-8,
    }.get(mistake, square.sqrt() + 1e-8)
    shrink = {"l2": 0.0, "unscaled": decay}.get(mistake, lr * decay)
    if mistake == "kept corrected":
        return w - shrink * w - lr * mean / size, mean, square
    if mistake == "late":
        return (w - lr * mean / size) * (1 - shrink), m, v
    return w - shrink * w - lr * mean / size, m, v


def _wrong_rate(progress, warmup, final, least=0.01, wave=math.pi, start=0.0):
    rise = max(least, min(1.0, progress / warmup))
    along = max(0.0, progress - start) / (1 - start)
    return rise * (final + (1 - final) * (1 + math.cos(wave * along)) / 2)


def _wrong_train(model, data, recipe, optimizer, mistake):
    """The loop with one thing wrong."""
    losses = []
    for step in range(recipe.steps):
        seen = 0 if mistake == "same windows" else step
        generator = torch.Generator().manual_seed(mix_seeds(recipe.seed, seen))
        starts = torch.randint(len(data) - recipe.window, (recipe.batch,), generator=generator)
        inputs, targets = windows(data, starts, recipe.window)
        if mistake == "unshifted":
            targets = inputs
        loss = _loss(model, inputs, targets, mistake)
        if mistake != "kept":
            optimizer.zero_grad()
        loss.backward()
        if mistake == "wiped":
            optimizer.zero_grad()
        if mistake != "clipped late":
            optim.clip_gradients(model.parameters(), recipe.clip)
        progress = (step + (mistake == "rate early")) / recipe.steps
        share = rate(progress, recipe.warmup, recipe.final_lr)
        for group in optimizer.param_groups:
            peak = 1.0 if mistake == "without the peak" else recipe.lr
            group["lr"] = peak * (1.0 if mistake == "constant" else share)
        optimizer.step()
        if mistake == "clipped late":
            optim.clip_gradients(model.parameters(), recipe.clip)
        told = _loss(model, inputs, targets, mistake) if mistake == "told late" else loss
        losses.append(told.item())
    return losses


def _loss(model, inputs, targets, mistake):
    logits, sums = model(inputs.long()), {"sum": torch.sum}.get(mistake, torch.mean)
    if mistake == "rounded":
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten().long())
    return sums(token_losses(logits, targets))


EXERCISES = (
    Exercise(
        windows,
        cases=_texts,
        hints=(
            "A row needs one byte more than the window: the last one is a target only.",
            "Cut the rows first; inputs and targets are two views of the same row.",
        ),
        mistakes={
            "Inputs and targets are the same bytes: the model would copy.": lambda d, s, w: (
                (windows(d, s, w)[0],) * 2
            ),
            "The targets stand before their inputs: that predicts the past.": lambda d, s, w: (
                windows(d, s, w)[::-1]
            ),
            "The rows start one byte late.": lambda data, starts, window: windows(
                data.roll(-1), starts, window
            ),
        },
    ),
    Exercise(
        adamw,
        use=_use_adamw,
        truth=_by_torch,
        cases=_gradients,
        hints=(
            "Write the four lines of the formula as they stand; `n` is 1 in the first step.",
            "The new m and v are those without the correction; only the step uses the corrected.",
            "The decay is lr * decay * w, with the old w, and passes through no average.",
        ),
        mistakes={
            "Without dividing by 1 - b^n, the averages of the first steps are too small.": partial(
                _wrong_adamw, mistake="biased"
            ),
            "The decay went through the averages: that is Adam with L2, not AdamW.": partial(
                _wrong_adamw, mistake="l2"
            ),
            "Return m and v as they are; only the step uses them corrected.": partial(
                _wrong_adamw, mistake="kept corrected"
            ),
            "1e-8 is added to the root, not under it.": partial(_wrong_adamw, mistake="inside"),
            "1e-8 is added after the correction of v, not before.": partial(
                _wrong_adamw, mistake="early"
            ),
            "b1 belongs to m, and b2 to v; they are swapped.": lambda *a: adamw(
                *a, b1=0.98, b2=0.9
            ),
            "The step divides by the root of v, not by v.": partial(
                _wrong_adamw, mistake="no root"
            ),
            "The decay is multiplied by the learning rate, too.": partial(
                _wrong_adamw, mistake="unscaled"
            ),
            "The decay takes its share of the old w, not of the new one.": partial(
                _wrong_adamw, mistake="late"
            ),
        },
    ),
    Exercise(
        rate,
        truth=lambda progress, warmup, final: optim.warmup_cosine(
            progress, warmup=warmup, final=final
        ),
        cases=_progress,
        within=1e-12,
        hints=(
            "Compute the two factors one after the other; `min` and `max` bound the first.",
            "`(1 + math.cos(math.pi * progress)) / 2` falls from 1 to 0.",
        ),
        mistakes={
            "The rise begins at 0.01, or the first step would be wasted.": partial(
                _wrong_rate, least=0.0
            ),
            "That is a whole wave: the rate would rise again.": partial(
                _wrong_rate, wave=2 * math.pi
            ),
            "The cosine spans the whole run, not what follows the warm-up.": lambda p, w, f: (
                _wrong_rate(p, w, f, start=w)
            ),
            "The cosine ends at `final`, not at zero.": lambda progress, warmup, final: rate(
                progress, warmup, 0.0
            ),
        },
    ),
    Exercise(
        train,
        use=_use_train,
        truth=_by_trainer,
        cases=_runs,
        within=0.0,
        hints=(
            "The order: draw, loss, zero_grad, backward, clip, set the rate, step.",
            "Step 0 has done nothing yet, so its progress is 0 / recipe.steps.",
            "Take the loss as `token_losses(model(inputs.long()), targets).mean()`.",
        ),
        mistakes={
            "The gradients of earlier steps were not set to zero.": partial(
                _wrong_train, mistake="kept"
            ),
            "The gradients were set to zero after `backward`, so the step had none.": partial(
                _wrong_train, mistake="wiped"
            ),
            "The gradient was not clipped before the step.": partial(
                _wrong_train, mistake="clipped late"
            ),
            "The rate is one step early: progress counts the steps that are done.": partial(
                _wrong_train, mistake="rate early"
            ),
            "The rate was not set in each group before the step.": partial(
                _wrong_train, mistake="constant"
            ),
            "The share was not multiplied by recipe.lr.": partial(
                _wrong_train, mistake="without the peak"
            ),
            "Each step drew the same windows: seed the generator with the step, too.": partial(
                _wrong_train, mistake="same windows"
            ),
            "The targets are the inputs, so the model learns to copy.": partial(
                _wrong_train, mistake="unshifted"
            ),
            "The loss is a mean over all targets, not their sum.": partial(
                _wrong_train, mistake="sum"
            ),
            "The losses are those before the update.": partial(_wrong_train, mistake="told late"),
            "`F.cross_entropy` adds up in another order; take the mean of `token_losses`.": (
                partial(_wrong_train, mistake="rounded")
            ),
        },
    ),
)
