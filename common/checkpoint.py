"""Reading tensors that came from anywhere, and saving a training run so that it goes on as if never stopped."""

import os
import pickle
from pathlib import Path

import torch

from common.errors import UserError
from common.files import replacing


def read_tensors(path: str | os.PathLike, mmap: bool = True) -> dict:
    """torch.load without running any code from the file; UserError in one sentence for everything that can be wrong.

    mmap: tensors are the file's pages, to be copied by whoever reads them.
    """
    try:
        try:
            z = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except RuntimeError as e:
            if "mmap" not in str(e):
                raise
            z = torch.load(path, map_location="cpu", weights_only=True)  # a file from before torch 1.6
    except FileNotFoundError as e:
        raise UserError(f"{path} does not exist") from e
    except pickle.UnpicklingError as e:
        raise UserError(f"{path} was refused: it is not a plain file of tensors (pickled code is never run)") from e
    except Exception as e:  # whatever garbage makes of the unpickler: KeyError, struct.error, AssertionError, ...
        raise UserError(f"{path} can't be read: truncated, or not a .pth file (download or copy it again)") from e
    if not isinstance(z, dict):
        raise UserError(f"{path} holds a {type(z).__name__}, expected a dict of tensors")
    return z


def infer_sizes(path: str | os.PathLike, z: dict) -> dict[str, int]:
    """Every size of an official x070 checkpoint from its shapes, under the names of model.RWKVConfig."""
    try:
        (V, C), (H, N) = z["emb.weight"].shape, z["blocks.0.att.r_k"].shape
        n_layer = 1 + max(int(k.split(".")[1]) for k in z if k.startswith("blocks."))
        ranks = {f"{n}_rank": z[f"blocks.0.att.{n}1"].shape[1] for n in "wag"}
        ranks["v_rank"] = z["blocks.1.att.v1"].shape[1] if n_layer > 1 else 0  # layer 0 has none, or an unused one
        n_ffn = z["blocks.0.ffn.key.weight"].shape[0]
    except (KeyError, ValueError, IndexError, AttributeError) as e:
        raise UserError(
            f"{path} is not an official RWKV-7 x070 checkpoint: no usable {e} (expected keys such as emb.weight "
            "(V, C) and blocks.0.att.r_k (H, N))"
        ) from e
    if H * N != C:
        raise UserError(f"{path}: key blocks.0.att.r_k has shape {(H, N)}, expected heads x head size = {C}")
    return dict(n_layer=n_layer, n_embd=C, vocab_size=V, head_size=N, n_ffn=n_ffn, **ranks)


def check_shapes(path: str | os.PathLike, z: dict, expected: dict[str, tuple], optional: set[str]) -> None:
    """UserError for the first key of `z` that is missing, unknown or of another shape than expected."""
    for k in expected | z:
        want, got = expected.get(k), tuple(getattr(z[k], "shape", [type(z[k])])) if k in z else None
        if want != got and k not in optional:
            has = "is missing" if got is None else f"has shape {got}" if want else "is not part of RWKV-7 x070"
            raise UserError(f"{path}: key {k} {has}" + (f", expected {want}" if want else ""))


def save_trainer(path: Path, parts: dict, progress: dict) -> None:
    """trainer.pt: the state_dict of each of `parts` (modules, optimizers), the random state, and plain numbers."""
    state = {name: part.state_dict() for name, part in parts.items()}
    with replacing(path) as tmp:
        torch.save({"parts": state, "rng": torch.get_rng_state(), "progress": progress}, tmp)


def restore_trainer(path: Path, parts: dict) -> dict | None:
    """Load trainer.pt, if there is one, into `parts` -> progress. UserError if the run had other parts than these."""
    if not path.exists():
        return None
    saved = read_tensors(path, mmap=False)  # optimizers keep what they are given, and the file will be replaced
    if set(saved["parts"]) != set(parts):
        raise UserError(
            f"{path} holds {sorted(saved['parts'])}, this run needs {sorted(parts)}: resume with the same config"
        )
    try:
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
    except (RuntimeError, ValueError) as e:
        raise UserError(f"{path} does not fit this config ({name} differs): resume with the same config") from e
    torch.set_rng_state(saved["rng"])
    return saved["progress"]
