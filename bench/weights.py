"""The weights on which everybody is measured: a random official .pth, and the same as GGUF files for llama.cpp.

    python bench/weights.py random 12 768 65536 MODEL.pth   # layers, width, vocabulary; bf16 in the file
    python bench/weights.py gguf MODEL.pth DIRECTORY        # fp32, bf16, q8_0; needs gguf and llama-cpp-python

The GGUF files have no vocabulary (tokens go in and out as numbers), which is all that measuring needs. Names and shapes
are those of llama.cpp's src/models/rwkv7.cpp; bf16 and q8_0 are made by llama.cpp's own quantiser, which keeps the
low-rank matrices in fp32.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import run
from common.checkpoint import read_tensors
from common.files import replacing
from model import RWKV7, RWKVConfig

QUANTISED = {"bf16": "LLAMA_FTYPE_MOSTLY_BF16", "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0"}
OUTSIDE = {"emb": "token_embd", "blocks.0.ln0": "token_embd_norm", "ln_out": "output_norm", "head": "output"}
INSIDE = {"ln1": "attn_norm", "ln2": "attn_norm_2", "att.ln_x": "time_mix_ln", "ffn.x_k": "channel_mix_lerp_k"}


@torch.no_grad()
def write_random(layers: int, width: int, vocab_size: int, path: Path) -> None:
    """The official initialisation and some noise everywhere: nothing in it is zero, so nothing can be skipped."""
    torch.manual_seed(0)
    small = RWKV7(RWKVConfig(layers, width, vocab_size=2)).init_weights()  # orthogonal rows of a whole head take long
    z = {name: t + 0.02 * torch.randn_like(t) for name, t in small.state_dict().items()}
    z |= {name: torch.randn(vocab_size, width) * width**-0.5 for name in ("emb.weight", "head.weight")}
    with replacing(path) as tmp:
        torch.save({name: t.bfloat16() for name, t in z.items()}, tmp)


def gguf_tensors(z: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a .pth under llama.cpp's names: six token-shift weights in one, low-rank matrices transposed."""
    out = {}
    for name, t in z.items():
        stem, _, kind = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "weight")
        if stem in OUTSIDE:
            out[f"{OUTSIDE[stem]}.{kind}"] = t
            continue
        _, i, stem = stem.split(".", 2)
        mix, _, short = stem.rpartition(".")
        if mix == "att" and (short.startswith("x_") or (i == "0" and short in ("v0", "v1", "v2"))):
            continue  # fused below; layer 0 has no use for v
        new = INSIDE.get(stem) or f"{'time' if mix == 'att' else 'channel'}_mix_{short}"
        low_rank = mix == "att" and short[:1] in "wavg" and short[1:] in ("1", "2")
        out[f"blk.{i}.{new}.{kind}"] = t.T if low_rank else t.flatten() if t.dim() == 3 or short == "r_k" else t
    for i in range(sum(name.endswith("att.x_r") for name in z)):
        fused = torch.stack([z[f"blocks.{i}.att.x_{n}"].flatten() for n in "rwkvag"])
        out[f"blk.{i}.time_mix_lerp_fused.weight"] = fused[:, None, None]
    for n in "012":  # never read, but its loader asks for them
        out[f"blk.0.time_mix_v{n}.weight"] = out[f"blk.0.time_mix_a{n}.weight"]
    return {name: t.float().contiguous() for name, t in out.items()}


def write_fp32(z: dict[str, torch.Tensor], path: Path) -> None:
    import gguf

    layers = sum(name.endswith("att.r_k") for name in z)
    rank = lambda n: z[f"blocks.{layers - 1}.att.{n}1"].shape[1]
    with replacing(path) as tmp:
        w = gguf.GGUFWriter(tmp, "rwkv7")
        w.add_vocab_size(len(z["emb.weight"]))
        w.add_embedding_length(z["emb.weight"].shape[1])
        w.add_feed_forward_length(len(z["blocks.0.ffn.key.weight"]))
        w.add_block_count(layers)
        w.add_wkv_head_size(z["blocks.0.att.r_k"].shape[1])
        w.add_layer_norm_eps(1e-5)
        w.add_decay_lora_rank(rank("w"))
        w.add_iclr_lora_rank(rank("a"))
        w.add_value_residual_mix_lora_rank(rank("v"))
        w.add_gate_lora_rank(rank("g"))
        w.add_context_length(1 << 20)
        w.add_head_count(0)  # asked for, not used
        w.add_file_type(gguf.LlamaFileType.ALL_F32)
        w.add_tokenizer_model("none")
        for name, t in gguf_tensors(z).items():
            w.add_tensor(name, t.numpy())
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()


def quantise(source: Path, target: Path, kind: str) -> None:
    """`kind`: bf16 or q8_0."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, QUANTISED[kind])
    with replacing(target) as tmp:
        if llama_cpp.llama_model_quantize(str(source).encode(), str(tmp).encode(), params):
            raise RuntimeError(f"llama.cpp could not make {target} from {source}")


def convert(pth: Path, directory: Path) -> None:
    """Write fp32.gguf, bf16.gguf and q8_0.gguf into `directory`, those that are not there yet."""
    if not (directory / "fp32.gguf").exists():
        write_fp32(read_tensors(pth), directory / "fp32.gguf")
    for kind in QUANTISED:
        if not (directory / f"{kind}.gguf").exists():
            quantise(directory / "fp32.gguf", directory / f"{kind}.gguf", kind)


def main():
    match sys.argv[1:]:
        case ["random", layers, width, vocab_size, path]:
            write_random(int(layers), int(width), int(vocab_size), Path(path))
        case ["gguf", pth, directory]:
            convert(Path(pth), Path(directory))
        case _:
            sys.exit(__doc__.strip())


if __name__ == "__main__":
    run.cli(main)
