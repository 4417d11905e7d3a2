"""The training loop that the autoencoder, the denoiser and the judge share."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

WORK = Path(__file__).parent.parent / ".demo-work"
"""The state of unfinished trainings."""

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

_CPU = torch.cpu.get_capabilities()
BFLOAT16 = DEVICE.type == "cuda" or bool(_CPU.get("avx512_bf16") or _CPU.get("amx_bf16"))
"""Whether the machine computes with bfloat16 itself; a CPU that does not is forty times slower."""

Network = TypeVar("Network", bound=nn.Module)

_EMA = 0.999
_SECONDS_BETWEEN_CHECKPOINTS = 120


def fit(
    name: str,
    model: Network,
    loss: Callable[[Network, int], Tensor],
    steps: int,
    lr: float,
    more: int = 0,
    matrices: Sequence[nn.Parameter] = (),
) -> Network:
    """Train, and return the exponential moving average of the weights.

    `loss(model, step)` must draw its data from a generator seeded by the step, so that a run that
    was stopped continues as if it had not been. AdamW, and Muon (Jordan et al. 2024) for the
    weights in `matrices`; learning rate with warm-up and cosine decay, bfloat16 autocast
    where the machine has it. A finished run, or finished weights without the state of their
    training, are trained for `more` steps, with a warm-up and decay anew.
    """
    model = model.to(DEVICE).train()
    apart = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in apart]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=1e-2)
    ]
    if matrices:
        muon = torch.optim.Muon(matrices, lr=lr, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw")
        optimizers.append(muon)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    first, last, step = 0, more or steps, 0

    file = checkpoint(name)
    if file.exists():
        state = torch.load(file, map_location=DEVICE)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, saved_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_state)
        first, last, step = state["first"], state["last"], state["step"]
        if step == last:
            first, last = step, step + more

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "first": first,
            "last": last,
            "step": step,
        }
        file.parent.mkdir(exist_ok=True)
        torch.save(state, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)

    saved = reported = time.monotonic()
    recent = 0.0
    while step < last:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group in groups:
            group["lr"] = lr * _schedule(step - first, last - first)
        torch.manual_seed(step)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=BFLOAT16):
            value = loss(model, step)
        model.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        _move_average(average, model, min(_EMA, (1 + step) / (10 + step)))

        recent += value.item()
        now = time.monotonic()
        if step % 50 == 0:
            pace, reported = (now - reported) / 50, now
            left = pace * (last - step) / 60
            print(
                f"{name}: step {step}/{last}, loss {recent / 50:.4f}, {left:.0f} min left",
                flush=True,
            )
            recent = 0.0
        if step == last or now - saved > _SECONDS_BETWEEN_CHECKPOINTS:
            save()
            saved = now
    return average


def checkpoint(name: str) -> Path:
    """Where a training's state is kept."""
    return WORK / f"{name}.pt"


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over the first 2 %, then a cosine down to 1 %."""
    warm_up = max(1, steps // 50)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2


@torch.no_grad()
def _move_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
    for mean, value in pairs:
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)
