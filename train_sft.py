"""Post-train an RWKV-7 on a task, with and without Future-Seed, and measure the difference.

    python train_sft.py configs/quickstart.py                         # from scratch, both arms, minutes on a CPU
    python train_sft.py configs/punc_head_l8.py --bsz=4               # any key below can be overridden
    python train_sft.py --resume=out/punc_head_l8-20261121-120000     # goes on as if it had never stopped
    torchrun --nproc_per_node=2 train_sft.py configs/punc_head_l8.py  # same losses, the batch is shared out

Writes out/<config>-<time>/: config.json, metrics.jsonl, log.txt, curve.png, last/ and best/ (model.pth in the official
layout, seed.pt), and last/trainer.pt to resume from. With compare=True the two arms are in off/ and on/ below it.
"""

import math
import time
from dataclasses import fields
from pathlib import Path

import torch

import tasks
from common import config, dist, optim, run
from common.batches import Batches, evenly, fingerprint, fit, left_pad
from common.checkpoint import restore_trainer, save_trainer
from common.decoding import decode, likeliest
from common.download import fetch
from common.errors import UserError
from common.loss import head_loss
from common.machine import faster_dtype
from common.resume import configure, write_config
from common.start_state import StartState
from common.tokenizer import get_tokenizer
from model import RWKV7, FutureSeed, RWKVConfig, SeedConfig
from wkv_cuda import describe

# --- config: the model
model = ""  # an official .pth, by path or by a name that `python -m common.download` lists; "" = from scratch
n_layer = 2  # sizes of a model from scratch
n_embd = 128
head_size = 64
tokenizer = "world"  # world | bytes | gpt2 | chars:ALPHABET
vocab_file = ""  # vocabulary of the tokenizer, if not in its usual place
# the data
task = "infill"  # a file in tasks/
task_args = {}  # its options; one of them: --task_args.n_digits=6
n_train = 100000  # training examples (a generated task makes them as they are needed)
n_val = 256  # validation examples: fixed, always evaluated in full
max_prompt_tokens = 4096  # a longer prompt is an error, or cut on the side that the task allows
# Future-Seed (the equation is in model.py)
future_seed = True  # False: plain RWKV-7
compare = False  # train both arms from the same weights on the same batches and print the table
controls = False  # a seeded arm is evaluated with no, another row's and a random seed too, at the end; compare does it
start_state = False  # instead of a seed, train a start state that is the same for all prompts (state tuning): a control
read_twice = False  # instead of a seed, read the prompt twice, at twice the cost: a control
fs_layer_start = 1  # first layer (0-based) that starts from a seed
fs_gate = "scalar"  # scalar: one alpha a layer | head: one a layer and head
fs_alpha_init = -2.0  # sigmoid(-2) = 0.12
fs_input_gate = False  # the gate also looks at the last prompt token
fs_seed_scale = 1.0  # constant factor of the gate
fs_schedule = "none"  # over depth, from fs_m_min to fs_m_max: none | linear | cos
fs_m_min = 1.0
fs_m_max = 1.0
fs_norm = True  # divide the state by its RMS
fs_detach = False  # no gradient into the layer below through the seed
fs_clip = 0.0  # elementwise bound of the seed; 0 = off
fs_form = "start"  # start | attractor: every step also decays towards the seed, at twice the operator's cost
# optimisation
train_only = "all"  # all | seed: nothing but the gate
optimizer = "adamw"  # adamw | muon: Muon for the matrices of the blocks, AdamW for the rest
lr = 3e-4  # att.w0 gets twice as much, as officially
muon_lr = 1e-2  # of the matrices if optimizer is muon
alpha_lr = 1e-3  # alpha of a scalar gate; 0 = fixed
alpha_head_lr = 1e-3  # alpha of a head gate; 0 = fixed
fs_w_lr = 1e-3  # u of the input gate; 0 = fixed
fs_b_lr = 1e-3  # beta of the input gate; 0 = fixed
start_lr = 1e-2  # of start_state
weight_decay = 0.01  # of matrices
betas = (0.9, 0.99)  # of AdamW
grad_clip = 1.0  # bound of the gradient's norm; 0 = off
bsz = 8  # examples a step, over all processes
micro_bsz = 0  # examples a forward pass; 0 = all of a process's share
max_steps = 1000  # 0 = evaluate only
time_budget = 0.0  # stop after so many seconds of training; 0 = off
warmup = 20  # steps
lr_schedule = "cosine"  # cosine | warmdown | halfway | constant, the first two to a tenth (common/optim.py)
# evaluation and output
eval_every = 250  # steps; the last step is always evaluated, and that evaluation is the reported one
eval_bsz = 32
eval_decode = True  # score free decoding, not only teacher forcing
n_show = 2  # examples to print at an evaluation
log_every = 20  # steps
save_every = 250  # steps; also before every evaluation, at the end and on Ctrl-C
out_dir = "out"
resume = ""  # directory of a run to continue
# numerics
dtype = "float32"  # float32 | bfloat16 | auto, the faster here: of the blocks; weights, moments, state, loss: fp32
device = "auto"  # auto | cpu | cuda
threads = 0  # of the CPU, per process; 0 = torch's choice
checkpointing = False  # recompute activations in the backward pass: less memory, a third more time
seed = 0  # of the initial weights and the order of the batches
data_seed = 1234  # of the examples, so that the validation set stays when `seed` changes

CHOICES = dict(optimizer=["adamw", "muon"], lr_schedule=[*optim.SCHEDULES], train_only=["all", "seed"],
               dtype=["float32", "bfloat16", "auto"])  # fmt: skip
COUNTS = ("n_layer", "n_embd", "head_size", "bsz", "eval_bsz", "eval_every", "save_every", "log_every")  # 1 or more


# --- model
def build_model(tok, dev) -> RWKV7:
    torch.manual_seed(seed)
    if model:
        net = RWKV7.load(fetch(model))
    else:
        net = RWKV7(RWKVConfig(n_layer, n_embd, tok.vocab_size, head_size)).init_weights()
    tok.check(net.cfg.vocab_size)
    net.dtype, net.checkpointing = getattr(torch, dtype), checkpointing
    return net.to(dev)


def build_seed(net, dev) -> FutureSeed:
    options = {f.name: globals()[f"fs_{f.name}"] for f in fields(SeedConfig)}
    return FutureSeed(SeedConfig(**options), net.cfg).to(dev)


def optimizers_for(net, fs) -> dict[str, torch.optim.Optimizer]:
    alpha = alpha_head_lr if fs_gate == "head" else alpha_lr
    rates = dict(alpha=alpha, u=fs_w_lr, beta=fs_b_lr, S=start_lr)
    rate, of_muon = None if train_only == "seed" else lr, dict(lr=muon_lr) if optimizer == "muon" else None
    return optim.build_optimizers(net, fs, rate, weight_decay, betas, rates, of_muon)


# --- loss
def targets_of(e, eot: int) -> list[int]:
    """What is learnt from an example: its blanks, or its answer closed by end-of-text."""
    return e.answer if e.blanks or e.answer[-1] == eot else [*e.answer, eot]


def read_prompts(net, fs, rows):
    """The prompt segment of a batch -> hidden states (B, P, C), rows ending at P, and the state after it."""
    prompts, lengths = left_pad([e.prompt * (2 if read_twice else 1) for e in rows])
    return net(prompts.to(net.emb.weight.device), lengths=lengths, seed=fs)


def answer_loss(net, h, state, rows, eot: int):
    """Teacher forcing after read_prompts -> cross-entropy (summed, fp32), how many tokens are right, of how many."""
    dev, P, answers = h.device, h.shape[1], [targets_of(e, eot) for e in rows]
    # blanks are read off the prompt where they stand; an answer's first token off the prompt's last position ...
    at = [(i, P - len(e.prompt) + p) for i, e in enumerate(rows) for p in (e.blanks or [len(e.prompt) - 1])]
    targets = [t for e, a in zip(rows, answers, strict=True) for t in (a if e.blanks else a[:1])]
    i, p = torch.tensor(at, device=dev).unbind(1)
    picked = [h[i, p]]
    # ... and its other tokens off the answer's own segment, which goes on from the prompt's state
    inputs = [[] if e.blanks else a[:-1] for e, a in zip(rows, answers, strict=True)]
    if A := max(map(len, inputs)):
        tokens = torch.tensor([x + [0] * (A - len(x)) for x in inputs], device=dev)
        h, _ = net(tokens, state)
        picked.append(h[torch.tensor([[j < len(x) for j in range(A)] for x in inputs], device=dev)])
        targets += [t for a, x in zip(answers, inputs, strict=True) if x for t in a[1:]]
    return *head_loss(torch.cat(picked), net.head.weight, torch.tensor(targets, device=dev)), len(targets)


# --- evaluation
@run.at_once()
@torch.no_grad()
def evaluate(net, fs, job, eot: int, rank=0, world=1) -> tuple[dict, list]:
    """The whole validation set -> metrics, [(example, predicted ids)] in the order of the set."""
    mine = sorted(range(rank, len(job.val), world), key=lambda i: len(job.val[i].prompt))
    nll, right, count, out, chosen = 0.0, 0, 0, [], []
    for batch in evenly(mine, eval_bsz):  # 'other row' needs company
        rows = [job.val[i] for i in batch]
        h, state = read_prompts(net, fs, rows)
        loss, hits, tokens = answer_loss(net, h, state, rows, eot)
        nll, right, count = nll + loss.item(), right + hits.item(), count + tokens
        if eval_decode:
            got = decode(net, h, state, rows, eot, job.max_new_tokens, job.contrast)
            out += zip(batch.tolist(), got, strict=True)
        if job.score_options:
            chosen += zip(batch.tolist(), likeliest(net, h, state, rows), strict=True)
    nll, right, count = dist.sum_numbers([nll, right, count], net.emb.weight.device)
    metrics = dict(loss=nll / count, token_accuracy=right / count, tokens_right=int(right), tokens=int(count))
    answers, chosen = (dict(pair for part in dist.gather(found) for pair in part) for found in (out, chosen))
    pairs = [(e, answers[i][0]) for i, e in enumerate(job.val)] if eval_decode else []
    if pairs and rank == 0:  # whose metrics are recorded; scoring may mean to run programs
        metrics |= job.score(job.val, [got for _, got in pairs])
    if pairs and job.score_odds and rank == 0:
        metrics |= job.score_odds(job.val, [answers[i][1] for i in range(len(job.val))])
    if job.score_options and rank == 0:
        metrics |= job.score_options(job.val, [chosen[i] for i in range(len(job.val))])
    return metrics, pairs


# --- loop
def training_step(net, fs, optimizers, params, rows, eot, rank, world, scale) -> tuple[float, float]:
    """One update on `rows`, shared out over the processes -> loss (nats/token), gradient norm; none if not finite."""
    n = sum(len(targets_of(e, eot)) for e in rows)  # of the whole step: every answer token weighs the same
    mine, loss = rows[rank::world], 0.0
    size = micro_bsz or max(1, len(mine))
    for micro in (mine[i : i + size] for i in range(0, len(mine), size)):
        part = answer_loss(net, *read_prompts(net, fs, micro), micro, eot)[0] / n
        part.backward()
        loss += part.item()
    dist.sum_gradients(params)
    (loss,) = dist.sum_numbers([loss], params[0].device)
    norm = torch.nn.utils.clip_grad_norm_(params, grad_clip or math.inf).item()
    if math.isfinite(loss) and math.isfinite(norm):
        optim.update(optimizers, scale)
    return loss, norm


def train(run_dir: Path | None, seeded: bool, job, tok, rank, world, dev) -> dict:
    """One arm, from its first step or where it was left, to its last -> metrics of the last evaluation."""
    net = build_model(tok, dev)
    fs = build_seed(net, dev) if seeded else StartState(net.cfg).to(dev) if start_state else None
    optimizers, batches = optimizers_for(net, fs), Batches(job, bsz, seed, max_prompt_tokens)
    params = optim.trained(optimizers)
    parts = {"net": net, **optimizers, **({"fs": fs} if fs else {})}
    at, log = dict(step=0, tokens=0, seconds=0.0, best=math.inf), run.Recorder(run_dir if rank == 0 else None)
    if resume and (found := restore_trainer(run_dir / "last" / "trainer.pt", parts)):
        at = found
        log.rewind(at["step"])
    log.print(f"\nFuture-Seed {'on' if seeded else 'off'}: {sum(p.numel() for p in params):,} parameters to train")

    def save(where="last"):
        if rank == 0:
            net.save(run_dir / where / "model.pth")
            if fs:
                fs.save(run_dir / where / ("seed.pt" if seeded else "start.pt"), tokenizer=tok.name)
            if where == "last":
                save_trainer(run_dir / where / "trainer.pt", parts, at)

    while True:
        if dist.any_of(run.interrupted(), dev):
            save()
            raise KeyboardInterrupt
        final = at["step"] >= max_steps or (time_budget and dist.any_of(at["seconds"] >= time_budget, dev))
        if final or at["step"] % eval_every == 0:
            save()  # first: a long evaluation may be killed
            metrics, pairs = evaluate(net, fs, job, tok.eot_id, rank, world)
            if seeded:
                metrics["gate"] = [round(fs.gate(l).mean().item(), 5) for l in range(fs_layer_start, net.cfg.n_layer)]
            samples = [tuple(tok.decode(ids) for ids in (e.prompt, e.answer, got)) for e, got in pairs[:n_show]]
            log.evaluation(at, metrics, job.levels, samples)
            if metrics["loss"] < at["best"]:
                at["best"] = metrics["loss"]
                save("best")
        elif at["step"] % save_every == 0:
            save()
        if final:
            break
        t0, rows = time.perf_counter(), batches[at["step"]]
        scale = optim.lr_scale(at["step"], max_steps, warmup, lr_schedule)
        loss, norm = training_step(net, fs, optimizers, params, rows, tok.eot_id, rank, world, scale)
        optim.check_finite(loss, norm, at["step"], f"lr={lr}, warmup={warmup}", run_dir)
        at["step"] += 1
        at["tokens"] += sum(len(e.prompt) + len(e.answer) for e in rows)
        at["seconds"] += time.perf_counter() - t0
        log.progress(at, loss, norm, lr * scale, time.perf_counter() - t0, max_steps, log_every)
    metrics["training_seconds"] = at["seconds"]
    if seeded and (compare or controls):
        metrics["controls"] = evaluate_controls(net, fs, job, tok.eot_id, rank, world)
    return metrics


def evaluate_controls(net, fs, job, eot, rank, world) -> dict:
    """The trained seeded arm, evaluated with something else in the seed's place. What survives is not Future-Seed's."""
    out = {"no seed": evaluate(net, None, job, eot, rank, world)[0]}
    for fs.control, name in (("other row", "another row's seed"), ("random", "a random seed")):
        out[name] = evaluate(net, fs, job, eot, rank, world)[0]
    return out


# --- check
def check(world: int):
    if compare and time_budget:
        raise UserError("compare=True needs equal steps in both arms: use max_steps instead of time_budget")
    if (compare or controls) and eval_bsz < 2:
        raise UserError("compare and controls swap seeds between rows: eval_bsz must be at least 2")
    if (start_state or read_twice) and (compare or future_seed):
        raise UserError("start_state and read_twice stand in for a seed: set compare=False and future_seed=False")
    if train_only == "seed" and (compare or not (future_seed or start_state)):
        raise UserError("train_only='seed' needs a seed in every arm: set compare=False and future_seed=True")
    if bsz < world:
        raise UserError(f"bsz={bsz} is less than one example for each of the {world} processes")


def main():
    settings = configure(globals())
    config.check(settings, CHOICES, COUNTS, signed=("fs_alpha_init", "fs_m_min", "fs_m_max"))
    rank, world, dev = dist.init(device, threads)
    check(world)
    if dtype == "auto":  # the record says what it came to, and a resumed run stays with it
        settings["dtype"] = globals()["dtype"] = faster_dtype(dev)
    tok = get_tokenizer(tokenizer, vocab_file or None)
    job = tasks.build(task, tok, data_seed, n_train, n_val, **task_args)
    if len(job.val) < (least := world * (2 if compare or controls else 1)):
        raise UserError(
            f"{len(job.val)} validation examples: controls and processes need at least {least}, raise n_val"
        )
    full, job.val = job.val, [fit(e, max_prompt_tokens, job.truncate) for e in job.val]
    cut, val_hash = sum(a is not b for a, b in zip(full, job.val, strict=True)), fingerprint(job.val)
    name = Path(config.files()[0]).stem if config.files() else task
    run_dir = Path(resume) if resume else run.new_run_dir(out_dir, name) if rank == 0 else None

    log = run.Recorder(run_dir if rank == 0 else None, ("train_sft.py", "model.py", "wkv_cuda/reference.py"))
    log.print(f"torch {torch.__version__}, {dev}, {torch.get_num_threads()} threads, {dtype}, wkv {describe(dev.type)}")
    log.print(config.changes())
    log.print(f"{task}: {len(job.train)} training, {len(job.val)} validation examples ({val_hash[:12]}), {cut} cut")
    if rank == 0:
        base = run.sha256(fetch(model)) if model else None
        about = write_config(run_dir, name, config=settings, val_hash=val_hash, base_sha256=base, levels=job.levels)

    metric = job.metric if eval_decode or job.score_options else "token_accuracy"
    arms, results = {"off": False, "on": True} if compare else {"": future_seed}, {}
    with run.guard(run_dir, f"lower micro_bsz (now {micro_bsz or bsz}), or set checkpointing=True"):
        for arm, seeded in arms.items():
            results[arm] = train(run_dir and run_dir / arm, seeded, job, tok, rank, world, dev)
    if rank == 0:
        if compare:
            log.print(run.comparison(results["off"], results["on"], metric, job.levels))
        file, results = ("compare.json", results) if compare else ("result.json", {"result": results[""]})
        run.write_json(run_dir / file, dict(metric=metric, **about, **results))
        curves = {arm or about["name"]: run_dir / arm for arm in arms}
        run.plot_curves(run_dir / "curve.png", curves, metric, job.levels, about["name"])
        log.print(f"wrote {run_dir}")


if __name__ == "__main__":
    run.cli(main)
