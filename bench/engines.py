"""One implementation of the whole model, in a process of its own, at the command of model.py.

Started as `python bench/engines.py JOB`: reads one task (JSON) a line, answers with one line each. All but the standard
library and numpy is imported only where it is needed, so that the peak memory of a process is its implementation's.
An engine has prefill(ids) -> logits (V,) of the next token, and step(id) -> the same, from there on.
"""

import importlib.metadata
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}


class Ours:
    """model.py's prefill and step; `layers` cuts the model, to see what a layer costs."""

    def __init__(self, job):
        import torch

        from common.machine import at_its_best
        from model import RWKV7
        from wkv_cuda import describe

        at_its_best()
        torch.set_num_threads(job["threads"])
        torch.set_grad_enabled(False)
        dtype = torch.bfloat16 if job["precision"] == "bf16" else torch.float32
        self.torch, self.net = torch, RWKV7.load(job["pth"], dtype)
        self.net.dtype = dtype
        if job.get("layers"):
            self.net.blocks = self.net.blocks[: job["layers"]]
        self.version = describe()

    def prefill(self, ids):
        logits, self.state = self.net.prefill(self.torch.tensor([ids]))
        return logits[0]

    def step(self, token):
        logits, self.state = self.net.step(self.torch.tensor([token]), self.state)
        return logits[0]


class Decoding(Ours):
    """wkv_cuda/decode.py: the prompt is read by the model, in bf16 unless all is fp32; then one C++ call a token."""

    def __init__(self, job):
        from wkv_cuda.decode import Decoder

        super().__init__(job | {"precision": "fp32" if job["precision"] == "fp32" else "bf16"})
        self.decoder = Decoder(self.net, DTYPES[job["precision"]])

    def prefill(self, ids):
        logits = super().prefill(ids)
        self.session = self.decoder.start(self.state)
        return logits

    def step(self, token):
        return self.session.next(self.torch.tensor([token]))[0]


class PipRwkv:
    def __init__(self, job):
        os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
        import torch
        from rwkv.model import RWKV

        torch.set_num_threads(job["threads"])
        self.net, self.state = RWKV(model=job["pth"].removesuffix(".pth"), strategy=f"cpu {job['precision']}"), None
        self.version = importlib.metadata.version("rwkv")

    def prefill(self, ids):
        logits, self.state = self.net.forward(ids, None)
        return logits

    def step(self, token):
        logits, self.state = self.net.forward([token], self.state)
        return logits


class LlamaCpp:
    """Through the C interface of llama-cpp-python; int8 stands for its q8_0."""

    def __init__(self, job):
        import llama_cpp

        self.lib = lib = llama_cpp
        kind = "q8_0" if job["precision"] == "int8" else job["precision"]
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        model = lib.llama_model_load_from_file(str(Path(job["gguf"]) / f"{kind}.gguf").encode(), params)
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(512, job["tokens"])  # the whole prompt at once
        params.n_threads = params.n_threads_batch = job["threads"]
        self.context, self.vocab_size = lib.llama_init_from_model(model, params), job["vocab_size"]
        if not self.context:
            raise RuntimeError("llama.cpp can't make a context")
        self.version = f"{lib.__version__} (llama-cpp-python)"

    def run(self, ids):
        tokens = (self.lib.llama_token * len(ids))(*ids)
        if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama_decode failed")
        return np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, -1), (self.vocab_size,))

    def prefill(self, ids):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        return self.run(ids)

    def step(self, token):
        return self.run([token])


class Training:
    """The step of train_sft.py, Future-Seed on, on random examples: T tokens read a row, the last of them answers.

    operator: "" = the best there is; torch, compiled, reference = nothing in C++ (by WKV_BACKEND); fla = its kernels.
    """

    def __init__(self, job):
        import torch

        import model
        from bench.operators import fla_cuda, whole
        from common.loss import head_loss
        from common.machine import at_its_best
        from wkv_cuda import describe
        from wkv_cuda.reference import wkv7_chunked

        at_its_best()
        torch.set_num_threads(job["threads"])
        torch.manual_seed(0)
        if job["operator"] == "compiled":
            compiled = torch.compile(wkv7_chunked)  # for prompts with gradients: compiling every case takes minutes

            def wkv7(r, w, k, v, a, b, s0):
                if r.shape[1] < self.prompt.shape[1]:
                    return wkv7_chunked(r, w, k, v, a, b, s0)
                return compiled(r, w, k, v, a, b, s0 if s0.requires_grad else s0.clone().requires_grad_())

            model.wkv7 = wkv7
        elif job["operator"] == "fla":
            model.wkv7 = whole(fla_cuda())
        self.torch, self.head_loss, self.dev, B = torch, head_loss, job.get("device", "cpu"), job["rows"]
        self.net = model.RWKV7.load(job["pth"]).to(self.dev)
        self.net.dtype = getattr(torch, DTYPES[job["precision"]])
        self.seed = model.FutureSeed(model.SeedConfig(), self.net.cfg).to(self.dev)
        groups = [*self.net.param_groups(3e-4, 0.01), dict(params=[*self.seed.parameters()], lr=1e-3, weight_decay=0.0)]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
        self.params = [p for g in groups for p in g["params"]]
        answers = max(2, job["answers"] // B)  # a row
        ids = torch.randint(1, self.net.cfg.vocab_size, (B, job["tokens"] + 1), device=self.dev)
        self.prompt, self.answer = ids[:, :-answers], ids[:, -answers:]
        self.version = describe(self.dev)

    def loss(self):
        h, state = self.net(self.prompt, seed=self.seed)
        after, _ = self.net(self.answer[:, :-1], state)
        rows = self.torch.cat([h[:, -1:], after], dim=1).flatten(0, 1)
        return self.head_loss(rows, self.net.head.weight, self.answer.flatten())[0] / len(rows)

    def update(self):
        self.torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self):
        self.loss().backward()
        self.update()
        if self.dev == "cuda":
            self.torch.cuda.synchronize()

    def gpu_memory(self):
        return self.torch.cuda.max_memory_allocated() / 2**30


ENGINES = {"ours": Ours, "decoder": Decoding, "rwkv": PipRwkv, "llama.cpp": LlamaCpp, "training": Training}


# ---- tasks


def peak_rss() -> float:
    """GiB that this process had resident at most. (getrusage would count its parent's, from before exec.)"""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def random_ids(n: int, vocab_size: int) -> list[int]:
    return np.random.default_rng(0).integers(1, vocab_size, n).tolist()


def perform(engine, task: dict) -> dict:
    """One round of a task -> what the parent asked for; times in seconds."""
    kind, start = task["do"], time.perf_counter()
    if kind == "train":
        engine.train()
        values = dict(seconds=time.perf_counter() - start)
        return (
            values if engine.dev == "cpu" else values | dict(rss_gib=engine.torch.cuda.max_memory_allocated() / 2**30)
        )
    if kind == "profile":
        from bench.profiling import profile_step

        return dict(table=profile_step(engine))
    ids = random_ids(task["tokens"], task["vocab_size"])
    start = time.perf_counter()
    logits = engine.prefill(ids)
    seconds = time.perf_counter() - start
    if kind == "prefill":
        return dict(seconds=seconds)
    if kind == "decode":  # greedy; the median, so that one hiccup of the machine is not everybody's
        times = []
        for _ in range(task["steps"]):
            start = time.perf_counter()
            logits = engine.step(int(logits.argmax()))
            times.append(time.perf_counter() - start)
        return dict(seconds=statistics.median(times), prefill_seconds=seconds)
    if kind == "logits":  # after the prompt, and after one more token
        copy = lambda x: np.array(x if isinstance(x, np.ndarray) else x.float().numpy())
        np.save(task["file"], np.stack([copy(logits), copy(engine.step(ids[0]))]))
        return {}
    raise ValueError(f"unknown task {kind}")


def main():
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers

    def answer(**values):
        print(json.dumps(values), file=out, flush=True)

    job = json.loads(sys.argv[1])
    try:
        engine = ENGINES[job["engine"]](job)
        answer(version=engine.version)
        while line := sys.stdin.readline():
            answer(**(dict(rss_gib=peak_rss()) | perform(engine, json.loads(line))))
    except Exception as e:  # whatever a peer raises is its reason for not being measured
        answer(failed=(str(e).strip() or type(e).__name__).splitlines()[0])


if __name__ == "__main__":
    main()
