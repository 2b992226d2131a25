"""State tuning: a trained constant in the place of the seed. The control: does any start state help?"""

from types import SimpleNamespace

import torch
import torch.nn as nn

from common.files import replacing


class StartState(nn.Module):
    """One start state (H, N, N) a layer, the same for every prompt; zero at first. Called as model.FutureSeed is."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = SimpleNamespace(layer_start=0)
        self.S = nn.Parameter(torch.zeros(cfg.n_layer, cfg.n_embd // cfg.head_size, cfg.head_size, cfg.head_size))

    def forward(self, l: int, S_below, x_last):
        return self.S[l].expand(len(x_last), *self.S.shape[1:])

    def save(self, path, **extra) -> None:
        with replacing(path) as tmp:
            torch.save({"start_state": self.S.detach().cpu(), **extra}, tmp)
