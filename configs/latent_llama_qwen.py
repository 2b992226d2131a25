"""LatentWire between Llama-3.1-8B-Instruct and Qwen2.5-7B-Instruct, the original pair, on two GPUs. **Not run here.**

    pip install transformers accelerate
    python train_latent.py configs/latent_llama_qwen.py
    python train_latent.py configs/latent_stage_b.py --init=out/RUN

Each frozen model has a GPU of its own, in bf16 (16 and 15 GB of weights); --four_bit=True needs bitsandbytes and about
a third of that. The settings are those of the published log: bytes, 32 latents of width 256, "Answer: ", end-of-text
banned for 6 steps. Published: F1 .799 (Llama) and .853 (Qwen) from the text; from the latents .006 to .022, and .031
and .010 two epochs after padding was taken out of the loss; first token right in 3 to 8 %.
"""

models = ["meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"]
devices = ["cuda:0", "cuda:1"]
dtype = "bfloat16"
n_train = 20000
reader = "bytes"
n_latents = 32
bos = "after"
lr = 5e-5
bsz = 32
epochs = 4
