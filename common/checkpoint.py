"""Reading files of tensors that came from anywhere, and saving a training run so that it can go on as if never stopped."""

import os
import pickle
from pathlib import Path

import torch

from common.errors import UserError
from common.files import replacing


def read_tensors(path: str | os.PathLike) -> dict:
    """torch.load without running any code from the file; UserError in one sentence for everything that can be wrong."""
    try:
        try:
            z = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as e:
            if "mmap" not in str(e):
                raise
            z = torch.load(path, map_location="cpu", weights_only=True)  # a file from before torch 1.6
    except FileNotFoundError as e:
        raise UserError(f"{path} does not exist") from e
    except pickle.UnpicklingError as e:
        raise UserError(f"{path} was refused: it is not a plain file of tensors (pickled code is never run)") from e
    except (RuntimeError, EOFError, OSError, ValueError) as e:
        raise UserError(f"{path} can't be read: truncated, or not a .pth file (download or copy it again)") from e
    if not isinstance(z, dict):
        raise UserError(f"{path} holds a {type(z).__name__}, expected a dict of tensors")
    return z


def save_trainer(path: Path, parts: dict, progress: dict) -> None:
    """trainer.pt: the state_dict of each of `parts` (modules, optimizers), the random state, and plain numbers."""
    state = {name: part.state_dict() for name, part in parts.items()}
    with replacing(path) as tmp:
        torch.save({"parts": state, "rng": torch.get_rng_state(), "progress": progress}, tmp)


def restore_trainer(path: Path, parts: dict) -> dict:
    """Load trainer.pt into `parts` -> progress. UserError if the run had another model or optimizer than this one."""
    saved = read_tensors(path)
    if set(saved["parts"]) != set(parts):
        raise UserError(f"{path} holds {sorted(saved['parts'])}, this run needs {sorted(parts)}: resume with the same config")
    try:
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
    except (RuntimeError, ValueError) as e:
        raise UserError(f"{path} does not fit this config ({name} differs): resume with the same config") from e
    torch.set_rng_state(saved["rng"])
    return saved["progress"]
