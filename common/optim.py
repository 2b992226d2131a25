"""The optimizers of a run: the model's official groups, a rate for each kind of gate, one schedule for all of them."""

import math

import torch

from common.errors import UserError

# the share of the steps after warmup that is done -> factor of the rates
SCHEDULES = {
    "cosine": lambda p: 0.1 + 0.9 * (1 + math.cos(math.pi * p)) / 2,
    "warmdown": lambda p: min(1.0, 0.1 + 0.9 * (1 - p) / 0.3),  # constant, then linear over the last 30 %
    "halfway": lambda p: min(1.0, 0.02 + 0.98 * (1 - p) / 0.5),  # likewise over the last half, to a fiftieth
    "constant": lambda p: 1.0,
}


def build_optimizers(net, seed, lr, weight_decay, betas, seed_rates, muon=None) -> dict[str, torch.optim.Optimizer]:
    """AdamW for what `net.param_groups` lists (lr=None: the model is not trained) and for the parameters of `seed`.

    muon: arguments of torch.optim.Muon, which takes the matrices of the blocks; None = AdamW has them, too. seed:
    FutureSeed, StartState or None; seed_rates: {name of its parameter: rate}, 0 = fixed, never decayed. Sets
    requires_grad of what stays fixed.
    """
    optimizers, groups = {}, [] if lr is None else net.param_groups(lr, weight_decay)
    net.requires_grad_(lr is not None)
    if lr is not None and muon is not None:
        hidden = {id(p) for p in net.blocks.parameters()}
        matrices = groups[0]["params"]
        groups[0]["params"] = [p for p in matrices if id(p) not in hidden]
        of_muon = dict(params=[p for p in matrices if id(p) in hidden], peak_lr=muon["lr"])
        optimizers["muon"] = torch.optim.Muon([of_muon], weight_decay=weight_decay, **muon)
    for name, p in seed.named_parameters() if seed is not None else ():
        p.requires_grad_(seed_rates[name] > 0)
        groups.append(dict(params=[p], lr=seed_rates[name], weight_decay=0.0))
    for group in groups:
        group["peak_lr"] = group["lr"]
    optimizers["adamw"] = torch.optim.AdamW(groups, betas=betas, fused=True)
    return optimizers


def trained(optimizers) -> list[torch.nn.Parameter]:
    return [p for o in optimizers.values() for g in o.param_groups for p in g["params"] if p.requires_grad]


def lr_scale(step: int, max_steps: int, warmup: int, schedule: str) -> float:
    """Factor of all peak rates: a linear rise over `warmup` steps, then one of SCHEDULES until max_steps."""
    rest = max(1, max_steps - warmup)
    return min(1.0, (step + 1) / max(1, warmup)) * SCHEDULES[schedule](min(1.0, max(0, step - warmup) / rest))


def update(optimizers, scale: float) -> None:
    """One step of all at `scale` times their peak rates; the gradients are gone after it."""
    for o in optimizers.values():
        for group in o.param_groups:
            group["lr"] = group["peak_lr"] * scale
        o.step()
        o.zero_grad()


def check_finite(loss: float, norm: float, step: int, rates: str, run_dir) -> None:
    """UserError that says what to change if the loss or the gradient's norm is none; nothing was updated with it."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        again = f"start again with a lower rate or a longer warmup than {rates}"
        raise UserError(
            f"loss {loss}, gradient norm {norm} at step {step}: {again}; {run_dir}/last has the last good weights"
        )
