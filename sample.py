"""Generate from an RWKV-7, with or without Future-Seed.

    python sample.py                                      # the newest run below out/: a few of its validation examples
    python sample.py --model=out/RUN --prompt="..."       # a run of train_sft.py: its weights, tokenizer and seed
    python sample.py --model=rwkv7-g1d-0.1b-20260129-ctx8192 --prompt="The Eiffel tower is in"
    python sample.py --model=file.pth --tokenizer=chars:0123456789,# --prompt="12345,"
    python sample.py --model=out/RUN --compare            # the same with the seed off and on
    python sample.py --model=... --chat                   # talk to it (G1 template); an empty line ends it

A prompt that holds the tokenizer's mask (`_` for chars:...) is filled in place instead of continued: all masks at once,
or, with --rounds=0, the surest first, which takes a model of train_diffusion.py --mask=random.
In a chat the whole conversation is read again at every turn: a seed belongs to one complete prompt.
"""

import sys
from pathlib import Path

import torch

import tasks
from common import config, dist, run
from common.download import fetch
from common.errors import UserError
from common.tokenizer import Stream, get_tokenizer
from common.unmasking import unmask
from model import RWKV7, FutureSeed
from wkv_cuda.decode import DTYPES, decoder_for

# --- config
model = ""  # directory of a run, a .pth file, or a name that `python -m common.download` lists; "" = newest run in out/
prompt = ""  # "" = validation examples of the run's task
n_examples = 3  # how many of those
chat = False  # talk instead
compare = False  # with the seed off, then on
future_seed = True  # read the prompt with the run's seed, if it has one
tokenizer = ""  # world | bytes | gpt2 | chars:ALPHABET; "" = the run's own, or world
vocab_file = ""
max_new_tokens = 200
temperature = 1.0  # 0 = always the likeliest token
top_p = 0.7  # keep the likeliest tokens that make up this probability (before temperature, as pip rwkv does)
presence_penalty = 0.0  # subtracted from the logit of every token that was generated before ...
frequency_penalty = 0.0  # ... and this for each time it was
penalty_decay = 0.996  # how fast both are forgotten, per token
rounds = 1  # in which masks are filled, block by block: 1 = all at once, 0 = as many as it takes
threshold = 0.9  # in every round, tokens with this probability stay, and the likeliest in any case
block = 0  # masks at a time, from the left; 0 = all
stop = []  # strings that end the output, e.g. --stop='["\n\n"]'
seed = 0  # of the sampling
dtype = "float32"  # float32 | bfloat16 | int8 (CPU only: weights of 8 bits; torch reads the prompt with them in fp32)
device = "auto"


def load():
    """-> model, decoder, seed module or None, tokenizer, the run's config.json or None."""
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown: use one of {', '.join(DTYPES)}")
    where = Path(model) if model else run.newest_run()
    if where is None:
        raise UserError("no model in out/: run `python train_sft.py configs/quickstart.py`, or name one: --model")
    if where.is_dir():
        arms = [where / name for name in ("on", "off") if (where / name).is_dir()]
        arm = arms[0] if arms else where  # of a comparison, the seeded arm
        weights = arm / "model.pth" if (arm / "model.pth").exists() else arm / "last" / "model.pth"
    else:
        weights = where if where.suffix == ".pth" else fetch(model)
    seed_file, record = weights.with_name("seed.pt"), None
    if weights.with_name("start.pt").exists():
        raise UserError(f"{weights} goes with a trained start state, a control that only its training script evaluates")
    for folder in weights.resolve().parents[:4]:  # what train_sft.py wrote about this run, if it was one
        if (folder / "config.json").exists():
            found = run.read_json(folder / "config.json")
            record = found if "val_hash" in found else None
            break
    if record and record["config"].get("read_twice"):
        raise UserError(f"{weights} goes with reading twice, a control that only train_sft.py evaluates")
    dev = dist.device_type("cpu" if device == "auto" and dtype == "int8" else device)
    reading = torch.float32 if dtype == "int8" else getattr(torch, dtype)
    net = RWKV7.load(weights, reading).to(dev).eval()
    net.dtype = reading
    tok = get_tokenizer(tokenizer or (record["config"]["tokenizer"] if record else "world"), vocab_file or None)
    tok.check(net.cfg.vocab_size)
    fs = FutureSeed.load(seed_file, net.cfg) if seed_file.exists() else None
    print(f"{weights}: L{net.cfg.n_layer} C{net.cfg.n_embd} V{net.cfg.vocab_size}, tokenizer {tok.name}, "
          f"{'with' if fs else 'no'} Future-Seed", file=sys.stderr)  # fmt: skip
    return net, decoder_for(net, dtype), fs and fs.to(dev), tok, record


def pick(logits, counts, generator) -> int:
    """Draw a token from logits (V,), which are changed; counts: decayed number of times each token was drawn."""
    for t, n in counts.items():
        logits[t] -= presence_penalty + frequency_penalty * n
    if temperature == 0:
        return int(logits.argmax())
    p = torch.softmax(logits.float().cpu(), dim=-1)
    sorted_p = p.sort(descending=True).values
    cutoff = sorted_p[int((sorted_p.cumsum(0) < top_p).sum().clamp(max=len(p) - 1))]
    p = (torch.where(p < cutoff, 0.0, p) / sorted_p[0]) ** (1 / temperature)  # the likeliest can't underflow
    return int(torch.multinomial(p, 1, generator=generator))


@torch.no_grad()
def generate(net, decoder, fs, tok, ids: list[int], stops: list[str]):
    """Yield the continuation of `ids` piece by piece; ends at end-of-text, a stop string or max_new_tokens."""
    generator, stream, counts, held = torch.Generator().manual_seed(seed), Stream(tok), {}, ""
    logits, state = net.prefill(torch.tensor([ids], device=net.emb.weight.device), seed=fs)
    session = decoder.start(state)
    for _ in range(max_new_tokens):
        token = pick(logits[0], counts, generator)
        if token == tok.eot_id:
            break
        counts = {t: n * penalty_decay for t, n in counts.items()}
        counts[token] = counts.get(token, 0.0) + 1
        held += stream.push(token)
        ends = [i for s in stops if (i := held.find(s)) >= 0]
        if ends:
            yield held[: min(ends)]
            return
        # what could be the beginning of a stop string waits for the next token
        keep = max((n for s in stops for n in range(1, len(s)) if held.endswith(s[:n])), default=0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
        logits = session.next(torch.tensor([token], device=net.emb.weight.device))
    yield held + stream.flush()


def fill(net, fs, tok, ids: list[int], seq_len: int):
    """Yield the prompt after each round, with what is filled in so far. seq_len: as the run's rows were padded."""
    n, ids = len(ids), ids + [tok.eot_id] * (seq_len - len(ids))
    for (row,) in unmask(net, fs, [ids], tok.mask_id, rounds, threshold, block):
        yield tok.decode(row[:n])


def complete(net, decoder, fs, tok, ids: list[int], stops: list[str], seq_len=0) -> str:
    """Print the continuation as it comes, or the prompt after each round of filling in its masks -> the text."""
    if tok.mask_id in ids:
        for number, text in enumerate(fill(net, fs, tok, ids, seq_len)):
            print(text if number == 0 else f"\n{'':8} {text}", end="", flush=True)
        print()
        return text
    text = ""
    for piece in generate(net, decoder, fs, tok, ids, stops):
        print(piece, end="", flush=True)
        text += piece
    print()
    return text


def talk(net, decoder, fs, tok):
    history = ""
    while True:
        try:
            line = input("User: ")
        except EOFError:
            return
        if not line.strip():
            return
        history += f"User: {' '.join(line.split())}\n\nAssistant:"
        print("Assistant:", end="", flush=True)
        history += complete(net, decoder, fs, tok, tok.encode(history), [*stop, "\n\n"]).rstrip() + "\n\n"


def main():
    signed = ("presence_penalty", "frequency_penalty")
    config.check(config.override(globals()), {}, ("n_examples", "max_new_tokens"), signed)
    if chat and compare:
        raise UserError("chat and compare don't go together: choose one")
    net, decoder, fs, tok, record = load()
    if compare and fs is None:
        raise UserError(f"--compare needs a model with a seed.pt beside it, {model or 'the newest run'} has none")
    arms = [("seed off", None), ("seed on", fs)] if compare else [("", fs if future_seed else None)]
    if chat:
        return talk(net, decoder, arms[0][1], tok)
    if prompt:
        examples = [(tok.encode(prompt), None)]
    elif record:
        c = record["config"]
        job = tasks.build(c["task"], tok, c["data_seed"], c["n_train"], c["n_val"], **c["task_args"])
        examples = [(e.prompt, tok.decode(e.answer)) for e in job.val[:n_examples]]
    else:
        raise UserError('nothing to continue: give a prompt, --prompt="..."')
    for ids, target in examples:
        if not ids:
            raise UserError("the prompt is empty")
        if record and "decoders" in record["config"] and tok.mask_id not in ids:  # a run of train_diffusion.py
            raise UserError("the prompt has no mask, and this run fills in masks: put _ (bytes: byte 1) for each token")
        print(f"\nprompt   {tok.decode(ids)}" + (f"\ntarget   {target}" if target else ""))
        for label, module in arms:
            print(f"{label or 'output':8}", end=" ")
            complete(net, decoder, module, tok, ids, stop, record["config"].get("seq_len", 0) if record else 0)


if __name__ == "__main__":
    run.cli(main)
