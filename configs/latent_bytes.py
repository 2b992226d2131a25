"""LatentWire as first designed, one byte-level encoder whose latents both models share: the small pair, on 2 CPU cores.

    python train_latent.py configs/latent_bytes.py --warm_text=FILE.txt

Models and data as in configs/latent_smollm2_gemma.py. The prefixes are first fitted to mean-pooled text, on the
training rows and on pieces of any plain text, which is cheap because no language model runs; then trained on answers.
"""

models = ["data/SmolLM2-135M-Instruct.Q4_1.gguf", "data/gemma-3-270m-q4_k_m.gguf"]
dtype = "bfloat16"
task_args = {"question": "last"}
n_train = 500  # what a core can do; 0 = all
reader = "bytes"
n_latents = 32
n_layer = 2
anchor_text = 'The answer is "'
answer_end = '"'
bos = "text"
warm_steps = 300
lr = 5e-4
lr_schedule = "cosine"
epochs = 2
min_new_tokens = 1
eos_ban_steps = 0
eval_bsz = 20
threads = 2
