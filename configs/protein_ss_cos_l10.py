"""Secondary structure at 48 positions among other proteins: the official 0.1B checkpoint, layers 10 and 11, cosine.

    python train_sft.py configs/protein_ss_cos_l10.py

Downloads the checkpoint (382 MB), the World vocabulary (1 MB) and FLIP's copy of NetSurfP-2.0 (2 MB) once. The settings
are those of the published search: 140 steps of 8 prompts of 2048 tokens, filled with notes behind the question.

Published: 21.1 % without, 23.2 % with Future-Seed after 140 steps, 34.5 % after 380 (set beside the 21.1 % of 140);
with equal steps over 5 seeds -0.80 points, no seed up. Not comparable: token accuracy of merged symbols on changing
batches, other data (chains of the PDB, split by a hash of the name, so that the same chain under another name is on
both sides), a checkpoint whose low-rank factors were swapped. Here: Q3 of residues that were seen in the structure, a
token a symbol, the dataset's own split. Not run here.
"""

model = "rwkv7-g1d-0.1b-20260129-ctx8192"
tokenizer = "world"
task = "protein_ss"
task_args = {"queries": 48, "notes": "fill", "max_prompt_tokens": 2048}
n_train = 1400
n_val = 280
compare = True
fs_layer_start = 10
fs_alpha_init = -2.0
alpha_lr = 0.0
fs_schedule = "cos"
fs_m_min = 0.4
fs_detach = True
fs_clip = 1.0
lr = 3e-5
bsz = 8
max_steps = 140
eval_every = 70
