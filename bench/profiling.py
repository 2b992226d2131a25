"""Where the time of a training step goes, by torch's profiler."""

import time

from torch.profiler import ProfilerActivity, profile

GEMM = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_addmm_activation", "mkldnn::_linear_pointwise")
COPIES = ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::contiguous")
FUSED = tuple(name + side for name in ("Mix", "Operands", "Readout", "ReluSquared") for side in ("", "Backward"))
LOSS = ("softmax", "nll_loss", "cross_entropy")


def part_of(name: str, shapes: list, vocab_size: int) -> str:
    """Which part of the step an operator belongs to; what touches the vocabulary is the head, whatever it is."""
    if any(vocab_size in shape for shape in shapes if isinstance(shape, list)) or any(x in name for x in LOSS):
        return "embedding, head and loss"
    if "wkv7" in name:
        return "WKV7 operator"
    if name in GEMM:
        return "matrix products"
    if name in FUSED:
        return "fused pieces between them"
    return "copies and casts" if name in COPIES else "everything else"


def profile_step(engine, steps: int = 3) -> list[dict]:
    """The fastest of a few warm steps of engines.Training -> its parts: name, own milliseconds, largest operators."""
    engine.train()
    found = [one_step(engine) for _ in range(steps)]
    return min(found, key=lambda rows: sum(row["ms"] for row in rows))


def one_step(engine) -> list[dict]:
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        engine.loss().backward()
    start = time.perf_counter()
    engine.update()
    update = (time.perf_counter() - start) * 1e3
    parts = {"clipping and AdamW": {"": update}}
    for e in found.key_averages(group_by_input_shape=True):
        operators = parts.setdefault(part_of(e.key, e.input_shapes, engine.net.cfg.vocab_size), {})
        operators[e.key] = operators.get(e.key, 0.0) + e.self_cpu_time_total / 1e3
    rows = []
    for part, operators in sorted(parts.items(), key=lambda x: -sum(x[1].values())):
        named = (n for n in operators if n.startswith(("aten::", "future_seed::", *FUSED)))
        largest = sorted(named, key=lambda n: -operators[n])[:3]
        text = ", ".join(f"{n.removeprefix('aten::')} {operators[n]:.0f}" for n in largest)
        rows.append(dict(part=part, ms=sum(operators.values()), largest=text))
    return rows
