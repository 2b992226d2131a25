"""Frozen causal language models behind one small interface: RWKV-7 (a .pth) and whatever `transformers` loads.

A prompt is a batch of embeddings (B, P, C) that ends at P in every row, padded on the left, so a text and a prefix that
was never text take exactly the same path; answers follow as token ids, padded on the right. No parameter ever gets a
gradient, while gradients do pass through to the prompt.

`transformers` is imported only when a model needs it: `pip install transformers`, for .gguf files also gguf accelerate.
"""

import copy
import re
from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F

from common import run
from common.download import NAMES, fetch
from common.errors import UserError
from common.tokenizer import Tokenizer, get_tokenizer
from model import RWKV7, FutureSeed

CONTENT = "\N{SNOWMAN}"  # holds the place of the prompt's content in a chat template


class FrozenLM(ABC):
    """name; width C; device, dtype of its embeddings; eos_id closes an answer, eos_ids all end one; bos_id or None;
    text_start: what its tokenizer puts before any text ([] or [bos_id]); rms: of its input embeddings, all of them."""

    name: str
    width: int
    device: torch.device
    dtype: torch.dtype
    bos_id: int | None
    eos_id: int
    eos_ids: set[int]
    text_start: list[int]
    rms: float

    @abstractmethod
    def encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def decode(self, ids: list[int]) -> str: ...

    @abstractmethod
    def template(self) -> tuple[str, str] | None:
        """What the chat template writes before and after the user's content; None if there is no template."""

    @abstractmethod
    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids of any shape -> the model's input embeddings (..., C), with whatever scale the model gives them."""

    @abstractmethod
    def read(self, prompt, lengths: list[int]) -> tuple[torch.Tensor, object]:
        """A prompt (B, P, C) of any float dtype -> fp32 logits (B, V) of the first token after it, state to go on from.

        lengths: ints (B,), the embeddings of each row that are not left padding.
        """

    @abstractmethod
    def next(self, tokens: torch.Tensor, state: object) -> tuple[torch.Tensor, object]:
        """More tokens (B, n), n >= 1 -> fp32 logits (B, n, V) of those after each, new state; the old one stays."""

    def follow(self, first, state, answers: list[list[int]]) -> torch.Tensor:
        """Teacher forcing after read(): fp32 logits (B, A, V), A the longest answer; [i, j] predicts answers[i][j].

        Answers are padded on the right, where nothing that counts can see it; logits past their ends mean nothing.
        """
        inputs = right_pad([a[:-1] for a in answers], first.device)
        rest = [self.next(inputs, state)[0]] if inputs.shape[1] else []
        return torch.cat([first[:, None], *rest], dim=1)

    def answer_logits(self, prompt, lengths: list[int], answers: list[list[int]]) -> torch.Tensor:
        """Both in one, for training."""
        return self.follow(*self.read(prompt, lengths), answers)

    def embed_ids(self, ids: list[int]) -> torch.Tensor:
        return self.embed(torch.tensor(ids, dtype=torch.long, device=self.device))

    def set_frame(self, anchor: str, text: str, bos: str, end: str = "") -> None:
        """Decide what stands around the content of every prompt, and what an answer's own text begins with.

        anchor: text, chat (text where the model has no template) or none: what follows the content. bos: none, after or
        before, of a prefix; text: where a text has it, which always starts as the tokenizer starts one. A space that
        ends `text` goes to the answer, because that is how the tokens of a running text are cut. end: what closes an
        answer instead of end-of-text.
        """
        before, after, self.lead, self.end = [], self.encode(text.rstrip(" ")), " " * text.endswith(" "), end
        if anchor == "chat" and (template := self.template()):
            (before, after), self.lead = map(self.encode, template), " " * template[1].endswith(":")
        if anchor == "none":
            after, self.lead = [], ""
        mark = [] if self.bos_id is None else [self.bos_id]
        # a template may have it already
        start = {True: self.text_start, False: {"before": mark, "text": self.text_start}.get(bos, [])}
        self.before = {k: before if before[: len(v)] == v else v + before for k, v in start.items()}
        self.after = {True: after, False: after + mark if bos == "after" else after}

    def prompt(self, contents: list[torch.Tensor], is_text: bool) -> tuple[torch.Tensor, list[int]]:
        """Contents (n_i, C) in the frame of a text or of a prefix -> embeddings (B, P, C), lengths."""
        before, after = self.embed_ids(self.before[is_text]), self.embed_ids(self.after[is_text])
        return left_pad([torch.cat([before, c.to(before), after]) for c in contents])

    def answer(self, text: str, close=True) -> list[int]:
        """Ids of an answer as it continues a prompt, closed by what set_frame() said or by end-of-text."""
        return self.encode(self.lead + text + self.end * close) + [self.eos_id] * (close and not self.end)

    def answer_text(self, ids: list[int]) -> str:
        """The first line of what was generated, and of that what stands before an end that set_frame() gave."""
        line = self.decode(ids).strip().split("\n")[0]
        return line.split(self.end)[0] if self.end else line

    @torch.no_grad()
    def measure_rms(self, V: int) -> float:
        """Root mean square of the elements of all V input embeddings."""
        squares = 0.0
        for part in torch.arange(V, device=self.device).split(16384):
            squares += self.embed(part).double().square().mean(-1).sum().item()
        return (squares / V) ** 0.5


class RWKVLM(FrozenLM):
    """Our RWKV-7. With `seed`, a FutureSeed, every prompt is read through it."""

    def __init__(self, name: str, net: RWKV7, tok: Tokenizer, seed: FutureSeed | None = None):
        tok.check(net.cfg.vocab_size)
        self.name, self.net, self.tok, self.seed = name, net.requires_grad_(False), tok, seed
        if seed is not None:
            seed.requires_grad_(False)
        self.width, self.device, self.dtype = net.cfg.n_embd, net.emb.weight.device, net.dtype
        self.bos_id = self.eos_id = tok.eot_id  # the end of a text stands before the next one
        self.eos_ids, self.text_start = {tok.eot_id}, []
        self.rms = self.measure_rms(tok.vocab_size)

    def encode(self, text):
        return self.tok.encode(text)

    def decode(self, ids):
        return self.tok.decode(ids)

    def template(self):
        return "User: ", "\n\nAssistant:"  # of the G1 checkpoints

    def embed(self, ids):
        return self.net.emb(ids)

    def read(self, prompt, lengths):
        return self.net.prefill(prompt, lengths, self.seed)

    def next(self, tokens, state):
        h, state = self.net(tokens, state)
        return self.net.head(h).float(), state


class HuggingFaceLM(FrozenLM):
    """A causal LM of `transformers` and its tokenizer."""

    def __init__(self, name: str, net, tok):
        self.name, self.net, self.tok = name, net.eval().requires_grad_(False), tok
        table = net.get_input_embeddings().weight
        self.width, self.device, self.dtype = table.shape[1], table.device, net.dtype
        self.bos_id, self.eos_id = tok.bos_token_id, tok.eos_token_id
        if self.eos_id is None:
            raise UserError(f"{name}: its tokenizer has no end-of-text token, so no answer could end")
        ends = net.generation_config.eos_token_id
        self.eos_ids = {self.eos_id, *(ends if isinstance(ends, list) else [ends] if ends is not None else [])}
        self.text_start = [i for i in tok("a").input_ids[:1] if i == self.bos_id]
        self.rms = self.measure_rms(len(table))

    def encode(self, text):
        return self.tok.encode(text, add_special_tokens=False)

    def decode(self, ids):
        return self.tok.decode(ids, skip_special_tokens=True)

    def template(self):
        if not self.tok.chat_template:
            return None
        message = [{"role": "user", "content": CONTENT}]
        before, _, after = self.tok.apply_chat_template(message, tokenize=False, add_generation_prompt=True).partition(
            CONTENT
        )
        return before, after

    def embed(self, ids):
        return self.net.get_input_embeddings()(ids)

    def forward(self, x, mask, **options):
        """x (B, T, C), mask (B, T) True where something stands; a row's positions count from its own first one."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -x.shape[1] :]
        return self.net(inputs_embeds=x.to(self.dtype), attention_mask=mask.long(), position_ids=positions, **options)

    def positions(self, start: int, x):
        """Those of x (B, T, C) from `start` on. As a slice they would not be contiguous in a batch, and torch would
        copy the head's weights for every row: half the time of a training step."""
        return torch.arange(start, x.shape[1], device=self.device)

    def mask(self, prompt, lengths):
        P = prompt.shape[1]
        return torch.arange(P, device=self.device) >= P - torch.tensor(lengths, device=self.device)[:, None]

    def read(self, prompt, lengths):
        mask = self.mask(prompt, lengths)
        out = self.forward(prompt, mask, use_cache=True, logits_to_keep=self.positions(prompt.shape[1] - 1, prompt))
        return out.logits[:, -1].float(), (mask, out.past_key_values)

    def next(self, tokens, state):
        mask, cache = F.pad(state[0], (0, tokens.shape[1]), value=True), copy.copy(state[1])
        cache.layers = [copy.copy(layer) for layer in cache.layers]  # of the old ones only references are replaced
        out = self.forward(self.embed(tokens), mask, past_key_values=cache, use_cache=True)
        return out.logits.float(), (mask, out.past_key_values)

    def answer_logits(self, prompt, lengths, answers):
        inputs = right_pad([a[:-1] for a in answers], self.device)
        x = torch.cat([prompt.to(self.dtype), self.embed(inputs)], dim=1)
        there = torch.tensor([[j < len(a) - 1 for j in range(inputs.shape[1])] for a in answers], device=self.device)
        mask = torch.cat([self.mask(prompt, lengths), there.view(inputs.shape).bool()], dim=1)
        keep = self.positions(prompt.shape[1] - 1, x)
        return self.forward(x, mask, use_cache=False, logits_to_keep=keep).logits.float()


# --- batches and decoding
def right_pad(rows: list[list[int]], device) -> torch.Tensor:
    """Ids (B, longest), 0 where a row is over."""
    n = max(map(len, rows))
    return torch.tensor([r + [0] * (n - len(r)) for r in rows], dtype=torch.long, device=device).view(len(rows), n)


def left_pad(rows: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Rows of embeddings (n_i, C) -> (B, longest, C) with zeros on the left, lengths."""
    lengths = [len(r) for r in rows]
    return torch.stack([F.pad(r, (0, 0, max(lengths) - len(r), 0)) for r in rows]), lengths


@torch.no_grad()
def generate(
    lm: FrozenLM, first, state, max_new: int, min_new=0, ban_eos=0, top_p=1.0, temperature=0.0, generator=None
) -> list[list[int]]:
    """After read(): ids of an answer a row, without what ended it. Greedy, but for the first token if temperature > 0.

    No token that ends an answer is taken among the first max(min_new, ban_eos). top_p: the first token is drawn from
    the likeliest ones that make up this probability.
    """
    logits, out, unfinished = first.clone(), [[] for _ in first], set(range(len(first)))
    for step in range(max_new):
        if step < max(min_new, ban_eos):
            logits[:, list(lm.eos_ids)] = -torch.inf
        token = draw(logits, top_p, temperature, generator) if step == 0 and temperature > 0 else logits.argmax(-1)
        for i, t in enumerate(token.tolist()):
            if i in unfinished:
                unfinished.discard(i) if t in lm.eos_ids else out[i].append(t)
        if not unfinished or step == max_new - 1:
            break
        logits, state = lm.next(token[:, None], state)
        logits = logits[:, -1]
    return out


def draw(logits, top_p: float, temperature: float, generator) -> torch.Tensor:
    """Tokens (B,) drawn from logits (B, V) at `temperature`, among the likeliest that make up top_p."""
    p, order = (logits.cpu() / temperature).softmax(-1).sort(-1, descending=True)
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0)
    p[:, 0] += p.sum(-1) == 0  # top_p = 0 keeps the first
    return order.gather(-1, torch.multinomial(p, 1, generator=generator))[:, 0].to(logits.device)


# --- loading
def load(name: str, dtype: torch.dtype, device: torch.device, four_bit=False, seeded=False) -> FrozenLM:
    """A .pth or a name that `python -m common.download` lists: RWKV-7; a .gguf, a directory, a hub name: transformers.

    four_bit: weights of 4 bits (bitsandbytes, on a GPU). seeded: RWKV-7 reads prompts through the seed.pt beside it.
    """
    short = re.sub(r"[^\w.-]", "_", Path(name).stem if Path(name).suffix in (".pth", ".gguf") else Path(name).name)
    if name in NAMES or name.endswith(".pth"):
        return load_rwkv(short, fetch(name), dtype, device, seeded)
    try:
        import transformers
    except ImportError as e:
        raise UserError(f"{name} needs `pip install transformers` (a .gguf also gguf accelerate): {e}") from e
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    where, options = name, {}
    if name.endswith(".gguf"):
        where, options = str(Path(name).parent), {"gguf_file": Path(name).name}
        if not Path(name).is_file():
            raise UserError(f"{name} does not exist: the docstring of the config says where to get it")
    try:
        tok = transformers.AutoTokenizer.from_pretrained(where, **options)
        if four_bit:
            options["quantization_config"] = transformers.BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
            )
        net = transformers.AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype, **options, **({"device_map": {"": device}} if four_bit else {})
        )
    except (OSError, ImportError, ValueError) as e:
        raise UserError(f"transformers can't load {name}: {' '.join(str(e).split())[:300]}") from e
    return HuggingFaceLM(short, net if four_bit else net.to(device), tok)


def load_rwkv(short: str, path: Path, dtype, device, seeded: bool) -> RWKVLM:
    net = RWKV7.load(path, dtype).to(device)
    net.dtype, seed = dtype, None
    if seeded:
        if not (file := path.with_name("seed.pt")).exists():
            raise UserError(f"future_seed=True, but there is no {file}: name the model.pth of a run of train_sft.py")
        seed = FutureSeed.load(file, net.cfg).to(device)
    names = {65536: "world", 50304: "gpt2", 50257: "gpt2", 256: "bytes"}
    if net.cfg.vocab_size not in names:
        raise UserError(f"{path} has {net.cfg.vocab_size} tokens: known are {', '.join(map(str, names))}")
    return RWKVLM(short, net, get_tokenizer(names[net.cfg.vocab_size]), seed)


def file_hash(name: str) -> str | None:
    """SHA-256 of a model that is one file; None for a directory or a hub name."""
    path = fetch(name) if name in NAMES else Path(name)
    return run.sha256(path) if path.is_file() else None
