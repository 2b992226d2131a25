"""LatentWire: an encoder and one adapter a model learn a short latent prefix that frozen language models answer from.

    python train_latent.py configs/latent_smollm2_gemma.py                  # models of 135M and 270M, on a CPU
    python train_latent.py configs/latent_smollm2_gemma.py --n_latents=128  # any key below can be overridden
    python train_latent.py configs/latent_stage_b.py --init=out/RUN         # a second stage, else as out/RUN
    python train_latent.py --resume=out/RUN                                 # goes on as if it had never stopped

A model reads [prefix][anchor][answer]; nothing of it is trained. Beside the prefix the same frozen models answer from
the whole text, from as many of its tokens as there are latents, from the question alone, and from another row's prefix:
a prefix that does no better than another row's carries nothing.

Writes out/<config>-<time>/: config.json, metrics.jsonl, log.txt, curve.png, baselines.json, result.json, last/ for
--resume, epoch-N/: encoder.pt, adapter_MODEL.pt, config.json, training_stats.json, metrics.json, predictions.jsonl.
"""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import tasks
from common import config, dist, frozen_lm, latent, latent_targets, optim, run
from common.batches import Batches, fingerprint
from common.checkpoint import restore_trainer, save_trainer
from common.errors import UserError
from common.resume import configure, write_config
from common.tables import markdown
from common.tokenizer import Bytes
from tasks._common import rng
from tasks._qa import score_answers

# --- config: the models
models = []  # frozen ones: RWKV-7 (.pth, or a name of common.download), .gguf files, directories or hub names
devices = []  # of the models, one each, e.g. ["cuda:0", "cuda:1"]; [] = all on `device`
dtype = "float32"  # float32 | bfloat16: of the frozen models; encoder and adapters are fp32
four_bit = False  # load models of transformers with weights of 4 bits; needs bitsandbytes and a GPU
future_seed = False  # RWKV-7 reads the prompt through the seed.pt beside it
# the data
task = "squad"  # one of the reading tasks: squad | hotpot
task_args = {"question": "first"}  # its options; limits are in bytes
extra = {}  # further training rows, {task: its options}, e.g. {"hotpot": {"question": "first"}}
n_train = 0  # training rows of `task`; 0 = all
n_val = 200  # validation rows, of articles that training never sees: fixed, always evaluated in full
max_bytes = 2048  # of question and context together, UTF-8; longer contexts are cut around the answer
# the wire
n_latents = 32  # M, vectors of the prefix
width = 256  # of a latent and of the encoder
n_layer = 4  # of the encoder
n_head = 4
patch = 4  # bytes that become one position of the encoder
reader = "bytes"  # bytes | tokens: what the encoder reads, bytes or each model's own token embeddings
pool = "place"  # place | select: a latent is a mean around its place in the text, or one of M positions that are kept
skip = False  # with tokens: prefix = pooled embeddings + adapter, so that training starts from mean-pooled text
gain = 1.0  # of the prefix, over the RMS of the model's input embeddings
anchor = "text"  # what stands between prefix and answer: text | chat (the template, where a model has one) | none
anchor_text = "Answer: "
answer_end = ""  # text that ends an answer, e.g. the quotation mark that the anchor opens; "" = end-of-text
bos = "none"  # none | after (between anchor and answer) | before (the prefix) | text: as the model's texts start
# the objective
first_weight = 0.5  # of the first answer token's cross-entropy, counted again
scale_weight = 0.05  # of (scale - 1)^2 of the adapters
kl_weight = 0.0  # of the divergence from the same model reading the text, on ...
kl_tokens = 4  # ... so many first answer tokens
keep_weight = 1.0  # with select: of the loss that teaches to keep the question and what stands around the answer
warm_steps = 0  # first without running the models: fit the prefixes to mean-pooled text; with select, that loss alone
warm_lr = 1e-3
warm_text = ""  # a text file whose pieces take part in that; "" = only the training rows
# optimisation
lr = 5e-5
lr_schedule = "constant"  # cosine | warmdown | halfway | constant, the first two to a tenth (common/optim.py)
warmup = 20  # steps
weight_decay = 0.01
grad_clip = 1.0  # bound of the gradient's norm; 0 = off
bsz = 8
epochs = 5  # 0 = evaluate only
# decoding
max_new_tokens = 12
min_new_tokens = 3  # no answer ends before
eos_ban_steps = 6  # no end-of-text in so many first steps; an answer also ends with its first line and at answer_end
first_token_top_p = 1.0
first_token_temperature = 0.0  # 0 = greedy, as all further tokens are
latents = "fresh"  # fresh | cached: encode the validation rows for every use, or once an evaluation
# evaluation and output
eval_bsz = 8
n_show = 5  # generations to print at an evaluation
log_every = 10  # steps
save_every = 50  # steps; also every epoch, at the end and on Ctrl-C
out_dir = "out"
resume = ""  # directory of a run to continue
init = ""  # a run, or one of its epoch-N, whose configuration, encoder and adapters to start from
device = "auto"  # auto | cpu | cuda
threads = 0  # of the CPU; 0 = torch's choice
seed = 0  # of the initial weights and the order of the batches
data_seed = 1234  # of the split and of what is cut

CHOICES = dict(dtype=["float32", "bfloat16"], reader=["bytes", "tokens"], pool=["place", "select"],
               anchor=["text", "chat", "none"], bos=["none", "after", "before", "text"], lr_schedule=[*optim.SCHEDULES],
               latents=["fresh", "cached"])  # fmt: skip
COUNTS = ("n_latents", "width", "n_layer", "n_head", "bsz", "max_new_tokens", "eval_bsz", "log_every", "save_every")
TEXT, LATENT, SHUFFLED, BUDGET, QUESTION = "text", "latent", "shuffled latent", "token budget", "no context"
SCORES = ("em", "f1", "nll", "first1", "first5")


# --- data
def build_data():
    """Rows as bytes: the training rows of all sources, the validation rows of the first."""

    def build(name, args, n, n_val):
        found = tasks.build(name, Bytes(), data_seed, n, n_val, **{"max_prompt_tokens": max_bytes, **args})
        found.train = [found.train[i] for i in range(len(found.train))]
        return found

    job = build(task, task_args, n_train, n_val)
    job.train += [e for name, args in extra.items() for e in build(name, args, 0, 1).train]  # one has to be left out
    return job


def text_of(e) -> str:
    """Question and context, without the prompt's own "Answer:", which is the anchor's business here."""
    return Bytes().decode(e.prompt).removesuffix("Answer:")


def question_of(e) -> str:
    lines = text_of(e).strip().split("\n")
    return f"{lines[0] if lines[0].startswith('Question: ') else lines[-1]}\n"


# --- model
def build_wire(dev) -> latent.Wire:
    lms = []
    for name, where in zip(models, devices or [dev] * len(models), strict=True):
        lms.append(frozen_lm.load(name, getattr(torch, dtype), torch.device(where), four_bit, future_seed))
        lms[-1].set_frame(anchor, anchor_text, bos, answer_end)
    torch.manual_seed(seed)
    wire = latent.Wire(lms, n_latents, width, n_layer, n_head, patch, reader, pool, skip, gain)
    return wire.load(Path(init)) if init and not resume else wire


def rate(step: int, steps: int) -> float:
    """Learning rate; the warm start has its own, and both begin with a warm-up."""
    if step < warm_steps:
        return warm_lr * min(1.0, (step + 1) / max(1, warmup))
    return lr * optim.lr_scale(step - warm_steps, steps - warm_steps, warmup, lr_schedule)


# --- loss
def answer_loss(lm, prefix, rows, teacher=None):
    """prefix (B, M, C) -> the loss of one model, nats a token: answers, first tokens, and what the teacher says."""
    answers = [lm.answer(e.meta["answers"][0]) for e in rows]
    logits = lm.answer_logits(*lm.prompt(list(prefix), False), answers)
    i, j = torch.tensor([(i, j) for i, a in enumerate(answers) for j in range(len(a))], device=logits.device).T
    logp = logits[i, j].log_softmax(-1)  # padding is left out here, and nothing attends to it
    nll = F.nll_loss(logp, torch.tensor([t for a in answers for t in a], device=logits.device), reduction="none")
    loss = nll.mean() + first_weight * nll[j == 0].mean()
    if teacher and kl_weight:
        known, early = [teacher(e.id, text_of(e), a) for e, a in zip(rows, answers, strict=True)], j < kl_tokens
        total = latent_targets.divergence(logp[early], *(torch.cat(x) for x in zip(*known, strict=True)))
        loss = loss + kl_weight * total / early.sum()
    return loss


def selection_loss(wire, scores, rows):
    """What teaches the encoder which tokens to keep; of pool = "select" only."""
    spans = [(t := text_of(e), latent_targets.relevant(t, question_of(e), e.meta["answers"][0])) for e in rows]
    return keep_weight * latent_targets.keep_loss(wire, scores, spans)


def training_step(wire, rows, teachers) -> float:
    """Gradients of all models' losses, one model after the other, then once through the encoder -> their sum."""
    (prefixes, scores), total = wire([text_of(e) for e in rows]), 0.0
    ends = [p.detach().requires_grad_() for p in prefixes]  # so that one model's graph is gone before the next one's
    for lm, end, teacher in zip(wire.lms, ends, teachers, strict=True):
        loss = answer_loss(lm, end, rows, teacher)
        loss.backward()
        total += loss.item()
    penalty = scale_weight * wire.scale_penalty() + (selection_loss(wire, scores, rows) if scores else 0.0)
    torch.autograd.backward([*prefixes, penalty], [*(end.grad for end in ends), None])
    return total + penalty.item()


def warm_step(wire, rows, pieces: str, random) -> float:
    """Gradients of what can be learnt without running a model -> its loss."""
    texts = [text_of(e) for e in rows]
    if pool == "select":
        loss = selection_loss(wire, wire(texts)[1], rows)
    else:
        loss = latent_targets.pooling_loss(wire, latent_targets.mixed(texts, pieces, max_bytes, random))
    loss.backward()
    return loss.item()


# --- evaluation
@torch.no_grad()
def ask(lm, contents, rows, is_text: bool) -> tuple[dict, list[str]]:
    """One model, one kind of content -> em, f1, nll (nats a gold token), first1, first5; and what it generated."""
    order = sorted(range(len(rows)), key=lambda i: len(contents[i]))
    texts, nll, count, hits, draws = {}, 0.0, 0, np.zeros(2), torch.Generator().manual_seed(seed)
    for at in (order[i : i + eval_bsz] for i in range(0, len(order), eval_bsz)):
        prompt, lengths = lm.prompt([contents[i].to(lm.device) for i in at], is_text)
        answers = [lm.answer(rows[i].meta["answers"][0], close=False) for i in at]
        first, state = lm.read(prompt, lengths)
        for logits, ids in zip(lm.follow(first, state, answers), answers, strict=True):
            target = torch.tensor(ids, device=logits.device)
            nll, count = nll + F.cross_entropy(logits[: len(ids)], target, reduction="sum").item(), count + len(ids)
            better = (logits[0] > logits[0, ids[0]]).sum().item()
            hits += better < 1, better < 5
        out = frozen_lm.generate(lm, first, state, max_new_tokens, min_new_tokens, eos_ban_steps,
                                 first_token_top_p, first_token_temperature, draws)  # fmt: skip
        texts |= {i: lm.answer_text(ids) for i, ids in zip(at, out, strict=True)}
    got, (first1, first5) = [texts[i] for i in range(len(rows))], (hits / len(rows)).tolist()
    scores = score_answers([e.meta["answers"] for e in rows], got)
    return dict(scores, nll=nll / count, first1=first1, first5=first5), got


def baselines(wire, rows) -> dict:
    """{model: {condition: scores}} of what does not depend on training."""
    out, texts, questions = {}, [text_of(e) for e in rows], [question_of(e) for e in rows]
    short = [q + t.replace(q, "", 1) for q, t in zip(questions, texts, strict=True)]  # the question is not cut off
    for lm in wire.lms:
        for kind, contents, n in ((TEXT, texts, None), (BUDGET, short, n_latents), (QUESTION, questions, None)):
            read = [lm.embed_ids(lm.encode(c)[:n]) for c in contents]
            out.setdefault(lm.name, {})[kind] = ask(lm, read, rows, True)[0]
    return out


def evaluate(wire, rows) -> tuple[dict, list[dict]]:
    """-> {model: {condition: scores, "prefix": statistics}} of the wire; a record of each row and model's answer."""
    encode = lambda: wire.encode([text_of(e) for e in rows], eval_bsz)
    out, predictions, known = {}, [], encode() if latents == "cached" else None
    for i, (lm, adapter) in enumerate(zip(wire.lms, wire.adapters, strict=True)):
        p = (known or encode())[i]
        scores, got = ask(lm, list(p), rows, False)
        p = (known or encode())[i]
        # half the set away, because neighbours come from the same article
        others, _ = ask(lm, list(p.roll(len(rows) // 2, 0)), rows, False)
        stats = dict(std=p.std().item(), rms=p.square().mean().sqrt().item(), embedding_rms=lm.rms,
                     between_rows=p.var(0).mean().sqrt().item(), scale=adapter.scale.item())  # fmt: skip
        out[lm.name] = {LATENT: scores, SHUFFLED: others, "prefix": stats}
        predictions += [dict(id=e.id, model=lm.name, question=question_of(e).strip(), gold=e.meta["answers"], got=g)
                        for e, g in zip(rows, got, strict=True)]  # fmt: skip
    return out, predictions


@run.at_once()
def full_evaluation(run_dir: Path, wire, rows, at: dict, log) -> tuple[dict, list]:
    """Everything, said and recorded; what does not depend on training is computed once a run."""
    if not (file := run_dir / "baselines.json").exists():
        run.write_json(file, baselines(wire, rows))
    found, predictions = evaluate(wire, rows)
    found = {name: {**base, **found[name]} for name, base in run.read_json(file).items()}
    metrics = {k: float(np.mean([f[LATENT][k] for f in found.values()])) for k in SCORES}
    metrics |= dict(loss=metrics["nll"], models=found)
    log.append("metrics.jsonl", json.dumps(dict(kind="eval", step=at["step"], **metrics)) + "\n")
    kinds = (TEXT, LATENT, SHUFFLED, BUDGET, QUESTION)
    lines = [(name, kind, *(f"{f[kind][k]:.4f}" for k in SCORES)) for name, f in found.items() for kind in kinds]
    head = ["model", "reads", "EM", "F1", "NLL, nats/token", "first token", "in top 5"]
    log.print(f"\nevaluation at step {at['step']}\n{markdown(head, lines)}")
    for name, f in found.items():
        log.print(f"    {name}: prefix " + ", ".join(f"{k} {v:.4g}" for k, v in f["prefix"].items()))
        for p in [p for p in predictions if p["model"] == name][:n_show]:
            log.print(f"    {p['question']!r}\n        gold {p['gold'][0]!r}, got {p['got']!r}")
    return metrics, predictions


# --- loop
def checkpoint(run_dir: Path, epoch: int, wire, at: dict, metrics: dict, predictions: list) -> None:
    """epoch-N/: all that is needed to use the wire elsewhere, and what it did."""
    folder, losses = run_dir / f"epoch-{epoch}", [r["loss"] for r in run.read_metrics(run_dir) if r["kind"] == "train"]
    wire.save(folder)
    prefix = {name: f["prefix"] for name, f in metrics["models"].items()}
    run.write_json(folder / "config.json", run.read_json(run_dir / "config.json"))
    run.write_json(folder / "training_stats.json", dict(at, epoch=epoch, losses=losses, prefix=prefix))
    run.write_json(folder / "metrics.json", metrics)
    with run.replacing(folder / "predictions.jsonl") as tmp:
        tmp.write_text("".join(json.dumps(p) + "\n" for p in predictions), encoding="utf-8")


def train(run_dir: Path, wire, job, log) -> dict:
    """From the first step or where the run was left, to the last -> metrics of the last evaluation."""
    params, per_epoch = list(wire.parameters()), len(job.train) // bsz
    optimizer, batches = torch.optim.AdamW(params, lr, weight_decay=weight_decay), Batches(job, bsz, seed, max_bytes)
    parts, at = {"wire": wire, "adamw": optimizer}, dict(step=0, tokens=0, seconds=0.0)
    steps, teachers = warm_steps + epochs * per_epoch, [latent_targets.Teacher(lm, kl_tokens) for lm in wire.lms]
    if resume and (found := restore_trainer(run_dir / "last" / "trainer.pt", parts)):
        at = found
        log.rewind(at["step"])
    pieces = Path(warm_text).read_text(encoding="utf-8") if warm_text else ""
    log.print(f"{sum(p.numel() for p in params):,} parameters to train, {steps} steps, {per_epoch} an epoch")
    while True:
        epoch, rest = divmod(at["step"] - warm_steps, per_epoch)
        if run.interrupted() or rest == 0 or at["step"] % save_every == 0:
            save_trainer(run_dir / "last" / "trainer.pt", parts, at)  # before a long evaluation
        if run.interrupted():
            raise KeyboardInterrupt
        if rest == 0 and epoch >= 0:
            metrics, predictions = full_evaluation(run_dir, wire, job.val, at, log)
            checkpoint(run_dir, epoch, wire, at, metrics, predictions)
        if at["step"] >= steps:
            return dict(metrics, training_seconds=at["seconds"])
        t0, rows = time.perf_counter(), batches[at["step"]]
        if at["step"] < warm_steps:
            loss = warm_step(wire, rows, pieces, rng(seed, "warm", at["step"]))
        else:
            loss = training_step(wire, rows, teachers)
        norm = torch.nn.utils.clip_grad_norm_(params, grad_clip or math.inf).item()
        optim.check_finite(loss, norm, at["step"], f"lr={lr}, warm_lr={warm_lr}", run_dir)
        for group in optimizer.param_groups:
            group["lr"] = rate(at["step"], steps)
        optimizer.step()
        optimizer.zero_grad()
        at["step"] += 1
        at["tokens"] += sum(len(e.prompt) for e in rows)  # bytes
        at["seconds"] += time.perf_counter() - t0
        log.progress(at, loss, norm, group["lr"], time.perf_counter() - t0, steps, log_every)


# --- check
def check():
    rules = {
        f"models={models}: name one or more, each once": models and len({Path(m).stem for m in models}) == len(models),
        f"devices={devices}: name one for each of {len(models)} models, or none": len(devices) in (0, len(models)),
        "pool='select' keeps tokens of a model: set reader='tokens'": pool == "place" or reader == "tokens",
        "skip=True adds to a model's own token embeddings: set reader='tokens'": not skip or reader == "tokens",
        f"width={width} must be a multiple of 2 * n_head={2 * n_head}": width % (2 * n_head) == 0,
        f"patch={patch} must be even": patch > 0 and patch % 2 == 0,
        "the shuffled control swaps prefixes between rows: n_val must be at least 2": n_val >= 2,
        "first_token_top_p must be above 0; greedy is first_token_temperature=0": first_token_top_p > 0,
        f"warm_text={warm_text} is not a file": not warm_text or Path(warm_text).is_file(),
    }
    for message, kept in rules.items():
        if not kept:
            raise UserError(message)


def main():
    settings = configure(globals())
    if init and not resume:
        globals().update(run.read_json(Path(init) / "config.json")["config"])
        settings = config.override(globals())  # what the command line says still counts
    config.check(settings, CHOICES, COUNTS)
    check()
    _, _, dev = dist.init(device, threads)
    job, wire = build_data(), build_wire(dev)
    val_hash = fingerprint(job.val)
    name = Path(config.files()[0]).stem if config.files() else "latent"
    run_dir = Path(resume) if resume else run.new_run_dir(out_dir, name)
    log = run.Recorder(
        run_dir, ("train_latent.py", *(f"common/{n}.py" for n in ("latent", "latent_targets", "frozen_lm")))
    )
    log.print(f"torch {torch.__version__}, {dev}, {torch.get_num_threads()} threads, {dtype}\n{config.changes()}")
    log.print(f"{task}: {len(job.train)} training, {len(job.val)} validation rows ({val_hash[:12]})")
    for lm in wire.lms:
        log.print(f"{lm.name}: width {lm.width}, embedding RMS {lm.rms:.4g}, {lm.device}")
    base = {m: frozen_lm.file_hash(m) for m in models}
    about = write_config(run_dir, name, config=settings, val_hash=val_hash, base_sha256=base, levels=job.levels)
    with run.guard(run_dir, f"lower bsz={bsz} or eval_bsz={eval_bsz}"):
        result = train(run_dir, wire, job, log)
    run.write_json(run_dir / "result.json", dict(metric="f1", **about, result=result))
    levels = {k: float(np.mean([f[k]["f1"] for f in result["models"].values()])) for k in (TEXT, BUDGET, QUESTION)}
    run.plot_curves(run_dir / "curve.png", {about["name"]: run_dir}, "f1", levels, about["name"])
    log.print(f"wrote {run_dir}")


if __name__ == "__main__":
    run.cli(main)
