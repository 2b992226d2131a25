"""Masked diffusion on an RWKV-7: fill in masks anywhere in a row, with and without Future-Seed.

    python train_diffusion.py configs/diffusion_rightcopy.py              # all arms, from scratch, minutes on a CPU
    python train_diffusion.py --resume=out/diffusion_rightcopy-20261121-120000
    python sample.py --model=out/RUN --prompt="L=93572084|M=________|R=16640295"    # --rounds=0 after mask="random"

The model stays a strict left-to-right reader; the whole row is one segment. So a mask, a token with its own embedding,
learns what stands to its right in one way: layer l starts its scan from the state in which layer l-1 ended the row.
Arms, from the same weights on the same rows: off (no seed), on (Future-Seed), start (a trained constant start state).
Source of the experiment: rwkv_diff_future_seed.py of the original repository; the model here is the official x070.
Writes out/<config>-<time>/: config.json, compare.json, curve.png and a directory of each arm, as train_sft.py does.
"""

import math
import time
from dataclasses import fields, replace
from pathlib import Path

import torch

import tasks
from common import config, dist, optim, run
from common.batches import Batches, evenly, fingerprint, left_pad
from common.checkpoint import restore_trainer, save_trainer
from common.download import fetch
from common.errors import UserError
from common.loss import head_loss
from common.resume import configure, write_config
from common.start_state import StartState
from common.tokenizer import get_tokenizer
from common.unmasking import assign, unmask
from model import RWKV7, FutureSeed, RWKVConfig, SeedConfig
from tasks._common import rng
from wkv_cuda import describe

# --- config: the model
model = ""  # an official .pth, by path or by a name that `python -m common.download` lists; "" = from scratch
n_layer = 2  # sizes of a model from scratch
n_embd = 128
head_size = 32
out_init = 0.5  # from scratch: gain of the last matrices of all mixes; 0 = as officially, and slower here
w0_first = [-5.0, 3.0]  # from scratch: att.w0 of the first layer, over the channels of each head; [] = as officially
w0_above = [-6.0, -2.0]  # from scratch: the same of all other layers
a0_first = [4.0, -1.0]  # from scratch: att.a0 of the first layer, likewise
x_k_above = []  # from scratch: ffn.x_k of all other layers, likewise; over 1: how the token differs from the one before
ln1_first = 1.0  # from scratch: ln1.weight of the first layer; under 1 its readouts start too small to be normalised
common_key = 0.0  # from scratch: size of a direction that all keys of the first layer share, beside the rest; 0 = none
tokenizer = "bytes"  # world | bytes | chars:ALPHABET, in which _ is the mask
vocab_file = ""  # vocabulary of the tokenizer, if not in its usual place
# the data
task = "infill"  # a file in tasks/ whose rows have blanks
task_args = {}  # its options; one of them: --task_args.kind=struct
n_train = 100000  # training rows (a generated task makes them as they are needed)
n_val = 200  # validation rows: fixed, always evaluated in full
seq_len = 0  # rows are filled up to it with end-of-text on the right, and that is read, as published; 0 = not
mask = "task"  # task: all blanks of a row | random: a share of them drawn uniformly, at least one
# Future-Seed (the equation is in model.py)
arms = ["off", "on", "start"]  # what is trained, in this order
fs_layer_start = 1  # first layer (0-based) that starts from a seed
fs_gate = "head"  # scalar: one alpha a layer | head: one a layer and head
fs_alpha_init = 2.0  # sigmoid(2) = 0.88; 100 with alpha_lr = 0: a gate of 1, the published ungated seed
fs_input_gate = False  # the gate also looks at the last token
fs_seed_scale = 1.0  # constant factor of the gate
fs_schedule = "none"  # over depth, from fs_m_min to fs_m_max: none | linear | cos
fs_m_min = 1.0
fs_m_max = 1.0
fs_norm = True  # divide the state by its RMS
fs_detach = False  # no gradient into the layer below through the seed
fs_clip = 0.0  # elementwise bound of the seed; 0 = off
fs_form = "start"  # start | attractor: every step also decays towards the seed, at twice the operator's cost
# optimisation
optimizer = "muon"  # adamw | muon: Muon for the matrices of the blocks, AdamW for the rest
lr = 4e-3  # att.w0 gets twice as much, as officially
muon_lr = 3e-2  # of the matrices if optimizer is muon
muon_momentum = 0.9
alpha_lr = 1e-2  # of the gate's parameters; 0 = fixed
start_lr = 1e-2  # of the arm "start"
weight_decay = 0.0  # of matrices
betas = (0.9, 0.99)  # of AdamW
grad_clip = 1.0  # of the gradient's norm; 0 = off
bsz = 32  # rows a step
micro_bsz = 0  # rows a forward pass; 0 = all
max_steps = 1000  # 0 = evaluate only
warmup = 20  # steps
lr_schedule = "halfway"  # halfway, linear over the last half | warmdown, over the last 30 % | cosine | constant
# decoding
decoders = ["one pass"]  # the first is scored; at the end all: one pass | iterative | assignment
rounds = 0  # iterative: at most so many a block, the work spread evenly; 0 = no bound
threshold = 0.9  # iterative: what is so probable is kept
block = 0  # iterative: masks at a time, from the left; 0 = all
top_k = 1  # iterative: tokens to draw from, their probability together is the confidence
temperature = 0.0  # iterative; 0 = the likeliest token
more_sets = {"fresh": {}}  # evaluated at the end too: rows of another seed, with other task_args
# evaluation and output
eval_every = 250  # steps; the last step is always evaluated, and that evaluation is the reported one
eval_bsz = 100
n_show = 1  # rows to print at an evaluation
log_every = 50  # steps
save_every = 250  # steps; also before every evaluation, at the end and on Ctrl-C
out_dir = "out"
resume = ""  # directory of a run to continue
# numerics
dtype = "float32"  # float32 | bfloat16: of the blocks; weights, moments, state, loss: fp32
device = "auto"  # auto | cpu | cuda
threads = 0  # of the CPU; 0 = torch's choice
checkpointing = False  # recompute activations in the backward pass: less memory, a third more time
seed = 0  # of the initial weights, the order of the batches and the masks
data_seed = 1234  # of the rows, so that the validation set stays when `seed` changes

CHOICES = dict(optimizer=["adamw", "muon"], lr_schedule=[*optim.SCHEDULES], mask=["task", "random"],
               dtype=["float32", "bfloat16"], arms=["off", "on", "start"],
               decoders=["one pass", "iterative", "assignment"])  # fmt: skip
COUNTS = ("n_layer", "n_embd", "head_size", "bsz", "top_k", "eval_bsz", "eval_every", "save_every", "log_every")  # > 0


# --- model
@torch.no_grad()
def from_scratch(tok) -> RWKV7:
    """The official initialisation, but for what decides how soon a small model finds the place of a digit.

    The first layer knows a place by how much of it is left, and a head's readout is normalised by itself: all have
    decays from .996 to .561, slow channels being overwritten more, .98 to .27. Above, a seed has to last: .999 to .930.
    Neighbours there read much the same, and the difference is a digit: with x_k over 1 the channel mix looks at that.
    """
    net = RWKV7(RWKVConfig(n_layer, n_embd, tok.vocab_size, head_size)).init_weights()
    for block in net.blocks if out_init else ():
        for output in (block.att.output, block.ffn.value):
            torch.nn.init.orthogonal_(output.weight, gain=out_init)
    first, *above = net.blocks
    ramps = [(b.att.w0, w0_above) for b in above] + [(b.ffn.x_k, x_k_above) for b in above]
    for p, ends in ((first.att.w0, w0_first), (first.att.a0, a0_first), *ramps):
        if ends:
            p.copy_(torch.linspace(*ends, head_size).repeat(n_embd // head_size))
    first.ln1.weight.mul_(ln1_first)
    if common_key:  # removal has one direction: what is left of a token depends on how many followed, not on which
        bias, part = torch.nn.functional.normalize(torch.randn(2, n_embd), dim=1)
        first.ln1.bias.copy_(bias)  # of norm 1, the inputs' is ln1_first * sqrt(C): only the key looks for it
        first.att.key.weight.add_(torch.outer(part, bias), alpha=0.1 * common_key * n_embd**0.5)
    return net


def build_model(tok, dev) -> RWKV7:
    torch.manual_seed(seed)
    net = RWKV7.load(fetch(model)) if model else from_scratch(tok)
    tok.check(net.cfg.vocab_size)
    net.dtype, net.checkpointing = getattr(torch, dtype), checkpointing
    return net.to(dev)


def build_seed(arm: str, net, dev):
    """What an arm's layers start from: nothing, the seed, or a constant."""
    if arm == "off":
        return None
    options = {f.name: globals()[f"fs_{f.name}"] for f in fields(SeedConfig)}
    return (FutureSeed(SeedConfig(**options), net.cfg) if arm == "on" else StartState(net.cfg)).to(dev)


# --- rows
def build_job(tok, seed_of_data: int, args: dict) -> tasks.Task:
    """The task, its validation rows as the model reads them. UserError if a row has nothing to fill in."""
    if tok.mask_id is None:
        raise UserError(f"tokenizer {tok.name!r} has no mask: use bytes, world, or an alphabet with _ (chars:..._#)")
    job = tasks.build(task, tok, seed_of_data, n_train, n_val, **task_args | args)
    if any(not e.blanks for e in job.val):
        raise UserError(f"task {task!r} has rows without blanks: diffusion needs a task that is filled in")
    job.val = [filled_up(e, tok.eot_id) for e in job.val]
    return job


def filled_up(e: tasks.Example, eot: int) -> tasks.Example:
    if seq_len and len(e.prompt) > seq_len:
        raise UserError(f"row {e.id} has {len(e.prompt)} tokens, seq_len is {seq_len}: raise it, or set it to 0")
    return replace(e, prompt=e.prompt + [eot] * (seq_len - len(e.prompt)))


def noised(e: tasks.Example, step: int) -> tasks.Example:
    """The row with each blank masked with a probability drawn for this row and step, at least one; the others shown."""
    random = rng(seed, "mask", step, e.id)
    keep = random.random(len(e.blanks)) < random.random()
    keep[random.integers(len(keep))] |= not keep.any()
    prompt = list(e.prompt)
    for p, t, masked in zip(e.blanks, e.answer, keep, strict=True):
        prompt[p] = prompt[p] if masked else t
    pick = lambda items: [x for x, masked in zip(items, keep, strict=True) if masked]
    return replace(e, prompt=prompt, blanks=pick(e.blanks), answer=pick(e.answer))


def read(net, fs, rows):
    """One pass -> hidden states at all masks (R, C), their true ids (R,), in the order of the rows."""
    prompts, lengths = left_pad([e.prompt for e in rows])
    dev, P = net.emb.weight.device, prompts.shape[1]
    h, _ = net(prompts.to(dev), lengths=lengths, seed=fs)
    at = torch.tensor([(i, P - len(e.prompt) + p) for i, e in enumerate(rows) for p in e.blanks], device=dev)
    return h[at[:, 0], at[:, 1]], torch.tensor([t for e in rows for t in e.answer], device=dev)


# --- evaluation
def decode(net, fs, rows, h, how: str, mask_id: int) -> list[list[int]]:
    """Answers of `rows`; h: what read() made of them, from which one pass can be read off."""
    if how == "assignment":
        return assign(net, fs, rows, mask_id)
    if how == "one pass":
        logits = net.head(h).float()
        logits[:, mask_id] = -torch.inf  # a mask is never an answer
        return [best.tolist() for best in logits.argmax(-1).split([len(e.blanks) for e in rows])]
    options = (rounds, threshold, block, temperature, top_k, torch.Generator().manual_seed(seed))
    *_, last = unmask(net, fs, [e.prompt for e in rows], mask_id, *options)
    return [[full[p] for p in e.blanks] for e, full in zip(rows, last, strict=True)]


@run.at_once()
@torch.no_grad()
def evaluate(net, fs, job, how: str, mask_id: int) -> tuple[dict, list]:
    """A whole validation set, all blanks masked -> metrics, predicted ids of each row."""
    nll, right, count, out = 0.0, 0, 0, {}
    order = sorted(range(len(job.val)), key=lambda i: len(job.val[i].prompt))
    for batch in evenly(order, eval_bsz):  # 'other row' needs company
        rows = [job.val[i] for i in batch]
        h, targets = read(net, fs, rows)
        loss, hits = head_loss(h, net.head.weight, targets)
        nll, right, count = nll + loss.item(), right + hits.item(), count + len(targets)
        out |= dict(zip(batch.tolist(), decode(net, fs, rows, h, how, mask_id), strict=True))
    got = [out[i] for i in range(len(job.val))]
    metrics = dict(loss=nll / count, token_accuracy=right / count, tokens_right=right, tokens=count)
    return metrics | job.score(job.val, got), got


def last_evaluations(net, fs, jobs: dict, mask_id: int) -> dict:
    """What is measured once, at the end: {"sets": {set: {decoder: metrics}}}, and of a seed {"controls": ...}."""
    found = {s: {how: evaluate(net, fs, job, how, mask_id)[0] for how in decoders} for s, job in jobs.items()}
    if not isinstance(fs, FutureSeed):
        return dict(sets=found)
    controls = {"no seed": evaluate(net, None, jobs["validation"], decoders[0], mask_id)[0]}
    for fs.control, name in (("other row", "another row's seed"), ("random", "a random seed")):
        controls[name] = evaluate(net, fs, jobs["validation"], decoders[0], mask_id)[0]
    return dict(sets=found, controls=controls)


def shown(tok, e, answer: list[int]) -> tuple[str, str, str]:
    """What stands around the masks, what should stand in them, what the model put there."""
    return tok.decode(e.prompt[max(0, e.blanks[0] - 40) : e.blanks[-1] + 41]), tok.decode(e.answer), tok.decode(answer)


# --- loop
def training_step(net, fs, optimizers, params, rows, scale: float) -> tuple[float, float]:
    """One update -> loss (nats a mask), norm of the gradient; none if one of them is not finite."""
    n, loss, size = sum(len(e.blanks) for e in rows), 0.0, micro_bsz or len(rows)
    for micro in (rows[i : i + size] for i in range(0, len(rows), size)):
        h, targets = read(net, fs, micro)
        part = head_loss(h, net.head.weight, targets)[0] / n
        part.backward()
        loss += part.item()
    norm = torch.nn.utils.clip_grad_norm_(params, grad_clip or math.inf).item()
    if math.isfinite(loss) and math.isfinite(norm):
        optim.update(optimizers, scale)
    return loss, norm


def train(run_dir: Path, arm: str, jobs: dict, tok, dev) -> dict:
    """One arm, from its first step or where it was left, to its last -> metrics of the last evaluation."""
    net, job = build_model(tok, dev), jobs["validation"]
    fs = build_seed(arm, net, dev)
    rates = dict(alpha=alpha_lr, u=alpha_lr, beta=alpha_lr, S=start_lr)
    of_muon = dict(lr=muon_lr, momentum=muon_momentum) if optimizer == "muon" else None
    optimizers = optim.build_optimizers(net, fs, lr, weight_decay, betas, rates, of_muon)
    params, batches = optim.trained(optimizers), Batches(job, bsz, seed, 1 << 20)
    parts = {"net": net, **optimizers, **({"fs": fs} if fs else {})}
    at, log = dict(step=0, tokens=0, seconds=0.0), run.Recorder(run_dir)
    if resume and (found := restore_trainer(run_dir / "last" / "trainer.pt", parts)):
        at = found
        log.rewind(at["step"])
    log.print(f"\narm {arm}: {sum(p.numel() for p in params):,} parameters to train")

    def save():
        net.save(run_dir / "last" / "model.pth")
        if fs:
            fs.save(run_dir / "last" / ("seed.pt" if arm == "on" else "start.pt"), tokenizer=tok.name)
        save_trainer(run_dir / "last" / "trainer.pt", parts, at)

    while True:
        if run.interrupted():
            save()
            raise KeyboardInterrupt
        final = at["step"] >= max_steps
        if final or at["step"] % eval_every == 0:
            save()  # first: a long evaluation may be killed
            metrics, got = evaluate(net, fs, job, decoders[0], tok.mask_id)
            if arm == "on":
                metrics["gate"] = [round(fs.gate(l).mean().item(), 5) for l in range(fs_layer_start, net.cfg.n_layer)]
            samples = [shown(tok, e, answer) for e, answer in zip(job.val[:n_show], got, strict=False)]
            log.evaluation(at, metrics, job.levels, samples)
        elif at["step"] % save_every == 0:
            save()
        if final:
            break
        t0, scale = time.perf_counter(), optim.lr_scale(at["step"], max_steps, warmup, lr_schedule)
        rows = [filled_up(e, tok.eot_id) for e in batches[at["step"]]]
        rows = [noised(e, at["step"]) for e in rows] if mask == "random" else rows
        loss, norm = training_step(net, fs, optimizers, params, rows, scale)
        optim.check_finite(loss, norm, at["step"], f"lr={lr}, warmup={warmup}", run_dir)
        at["step"] += 1
        at["tokens"] += sum(len(e.prompt) for e in rows)
        at["seconds"] += time.perf_counter() - t0
        log.progress(at, loss, norm, lr * scale, time.perf_counter() - t0, max_steps, log_every)
    return metrics | dict(training_seconds=at["seconds"]) | last_evaluations(net, fs, jobs, tok.mask_id)


# --- check
def check():
    if any(len(e) not in (0, 2) or {*map(type, e)} - {int, float} for e in (w0_first, w0_above, a0_first, x_k_above)):
        raise UserError("w0_first, w0_above, a0_first, x_k_above: give the first and the last value, or [] = official")
    if "validation" in more_sets or any(not isinstance(args, dict) for args in more_sets.values()):
        raise UserError(f"more_sets={more_sets}: write {{name: {{option of the task: value}}}}, none named validation")


def rehearse(jobs: dict, tok, dev):
    """Let seeds, sets and decoders refuse what they will refuse before an arm is trained, not behind it."""
    if "on" in arms and (eval_bsz < 2 or len(jobs["validation"].val) < 2):
        raise UserError("the controls swap seeds between rows: eval_bsz and n_val must be at least 2")
    net = build_model(tok, dev)
    for arm in arms:
        build_seed(arm, net, dev)
    for job in jobs.values():
        for how in decoders:
            evaluate(net, None, replace(job, val=job.val[:2]), how, tok.mask_id)


def main():
    settings = configure(globals())
    config.check(settings, CHOICES, COUNTS, signed=("fs_alpha_init", "fs_m_min", "fs_m_max"))
    check()
    _, world, dev = dist.init(device, threads)
    if world > 1:
        raise UserError("train_diffusion.py is one process: start it without torchrun")
    tok = get_tokenizer(tokenizer, vocab_file or None)
    job = build_job(tok, data_seed, {})
    jobs = {"validation": job} | {name: build_job(tok, data_seed + 1, args) for name, args in more_sets.items()}
    name = Path(config.files()[0]).stem if config.files() else f"diffusion_{task}"
    run_dir = Path(resume) if resume else run.new_run_dir(out_dir, name)

    log = run.Recorder(run_dir, ("train_diffusion.py", "model.py", "common/unmasking.py"))
    log.print(f"torch {torch.__version__}, {dev}, {torch.get_num_threads()} threads, {dtype}, wkv {describe(dev.type)}")
    log.print(config.changes())
    val_hash = fingerprint(job.val)
    log.print(f"{task}: {len(job.train)} training, {len(job.val)} validation rows ({val_hash[:12]})")
    base = run.sha256(fetch(model)) if model else None
    about = write_config(run_dir, name, config=settings, val_hash=val_hash, base_sha256=base, levels=job.levels)

    with run.guard(run_dir, f"lower micro_bsz (now {micro_bsz or bsz}), or set checkpointing=True"):
        rehearse(jobs, tok, dev)
        results = {arm: train(run_dir / arm, arm, jobs, tok, dev) for arm in arms}
    if {"off", "on"} <= results.keys():
        log.print(run.comparison(results["off"], results["on"], job.metric, job.levels))
    run.write_json(run_dir / "compare.json", dict(metric=job.metric, **about, **results))
    run.plot_curves(run_dir / "curve.png", {a: run_dir / a for a in arms}, job.metric, job.levels, about["name"])
    log.print(f"wrote {run_dir}")


if __name__ == "__main__":
    run.cli(main)
