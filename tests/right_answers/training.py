"""Right answers to the exercises of lesson 09."""

import math

import torch

from qllk.text.objectives import token_losses
from qllk.text.windows import sample_windows
from qllk.training import optim
from qllk.training.trainer import mix_seeds


def windows_by_index(data, starts, window):
    places = starts[:, None] + torch.arange(window)
    return data[places], data[places + 1]


def windows_by_loop(data, starts, window):
    inputs = [[data[s + i].item() for i in range(window)] for s in starts]
    targets = [[data[s + i + 1].item() for i in range(window)] for s in starts]
    return torch.tensor(inputs), torch.tensor(targets)


def adamw_in_place(w, g, m, v, n, lr, decay, b1=0.9, b2=0.98):
    m.lerp_(g, 1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    w.mul_(1 - lr * decay)
    w.addcdiv_(m, (v / (1 - b2**n)).sqrt() + 1e-8, value=-lr / (1 - b1**n))
    return w, m, v


def adamw_by_moving_averages(w, g, m, v, n, lr, decay, b1=0.9, b2=0.98):
    m, v = m + (1 - b1) * (g - m), v + (1 - b2) * (g * g - v)
    mean, size = m / (1 - b1**n), torch.sqrt(v / (1 - b2**n))
    return [w * (1 - lr * decay) - lr * mean / (size + 1e-8), m, v]


def rate_by_cases(progress, warmup, final):
    fall = final + (1 - final) * math.cos(math.pi * progress / 2) ** 2
    if progress >= warmup:
        return fall
    return fall * 0.01 if progress < 0.01 * warmup else fall * progress / warmup


def rate_in_torch(progress, warmup, final):
    rise = torch.tensor(progress / warmup, dtype=torch.float64).clamp(0.01, 1.0)
    wave = torch.tensor(math.pi * progress, dtype=torch.float64).cos()
    return rise * ((1 + final) / 2 + (1 - final) / 2 * wave)


def train_by_sums(model, data, recipe, optimizer):
    losses, weights = [], list(model.parameters())
    model.train()
    for step in range(recipe.steps):
        generator = torch.Generator().manual_seed(mix_seeds(recipe.seed, step))
        ids = sample_windows(data.numpy(), recipe.batch, recipe.window, generator).long()
        targets = ids[:, 1:]
        loss = token_losses(model(ids[:, :-1]), targets).sum() / targets.numel()
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        optim.clip_gradients(weights, recipe.clip)
        done = step / recipe.steps
        now = optim.warmup_cosine(done, warmup=recipe.warmup, final=recipe.final_lr)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * now
        optimizer.step()
    return losses


def train_with_the_rate_first(model, data, recipe, optimizer):
    losses = []
    while len(losses) < recipe.steps:
        step = len(losses)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * rate_by_cases(
                step / recipe.steps, recipe.warmup, recipe.final_lr
            )
        generator = torch.Generator().manual_seed(mix_seeds(recipe.seed, step))
        starts = torch.randint(len(data) - recipe.window, (recipe.batch,), generator=generator)
        inputs, targets = windows_by_index(data, starts, recipe.window)
        loss = token_losses(model(inputs.long()), targets).mean()
        loss.backward()
        dense = [p for p in model.parameters() if not p.grad.is_sparse]
        torch.nn.utils.clip_grad_norm_(dense, recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


ANSWERS = {
    "windows": (windows_by_index, windows_by_loop),
    "adamw": (adamw_in_place, adamw_by_moving_averages),
    "rate": (rate_by_cases, rate_in_torch),
    "train": (train_by_sums, train_with_the_rate_first),
}
