"""The few collective operations that data-parallel training needs; all of them do nothing in a single process."""

import atexit
import importlib
import os

import torch
import torch.distributed as dist

from common.errors import UserError


def device_type(device: str) -> str:
    """auto | cpu | cuda -> cpu | cuda. UserError for anything else, and for a GPU that torch does not find."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={device!r}: choose from auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device='cuda': torch {torch.__version__} finds no GPU here, use device='cpu' or 'auto'")
    return "cuda" if torch.cuda.is_available() and device == "auto" else device.replace("auto", "cpu")


def init(device: str, threads: int) -> tuple[int, int, torch.device]:
    """Join torchrun's process group if there is one, use `threads` CPU threads if not 0 -> rank, world size, device.

    UserError for a device that is not there.
    """
    if threads:
        torch.set_num_threads(threads)
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    if (device := device_type(device)) == "cuda":
        torch.cuda.set_device(local)
    if world > 1:
        # gloo's threads must have ended when Python does: one that still holds the last collective's tensors aborts the
        # process (pytorch pull request 179291). They end with the group, which that module, first imported by a later
        # optimizer, would keep alive for good: its default arguments take the group of the time of the import.
        importlib.import_module("torch.distributed.nn.functional")
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return int(os.environ.get("RANK", 0)), world, torch.device(device, local if device == "cuda" else None)


def sum_gradients(params: list[torch.nn.Parameter]) -> None:
    """Add up the gradients of all processes, in place. The loss must already be divided by the global token count."""
    if dist.is_initialized():
        for p in params:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # every process must take part in every sum
        for work in [dist.all_reduce(p.grad, async_op=True) for p in params]:
            work.wait()


def sum_numbers(numbers: list[float], device: torch.device) -> list[float]:
    """Element by element, over all processes."""
    if not dist.is_initialized():
        return numbers
    t = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(t)
    return t.tolist()


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether any process says yes, so that all leave a loop at the same step."""
    return bool(sum_numbers([float(flag)], device)[0])


def gather(rows: list) -> list[list]:
    """Every process's list, in order of rank, on every process."""
    if not dist.is_initialized():
        return [rows]
    out: list[list] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(out, rows)
    return out
