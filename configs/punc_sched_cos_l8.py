"""Punctuation and case restoration on HotpotQA text: the official 0.1B checkpoint, scalar gate over a cosine in depth.

    python train_sft.py configs/punc_sched_cos_l8.py

The data, budget and downloads of configs/punc_head_l8.py; the gate is one fixed sigmoid(-2) from layer 8, scaled over
depth by a cosine from 0.4 to 1.

Published: 9.18 % of teacher-forced token accuracy without and 9.99 % with it at equal steps, 11.90 % with a longer
budget than the baseline's (one seed); later, longer baselines at equal steps: +2.12 and -2.55 points on two seeds. On 8
samples an evaluation, from a checkpoint whose low-rank factors were swapped: not comparable. Not run here with the
real weights, so there is no expected result; not measured on a GPU.
"""

model = "rwkv7-g1d-0.1b-20260129-ctx8192"
tokenizer = "world"
task = "punc"
task_args = {"source": "hotpot", "max_prompt_tokens": 1536, "min_prompt_tokens": 512, "max_answer_tokens": 128}
n_train = 800
n_val = 160
compare = True
fs_layer_start = 8
fs_alpha_init = -2.0
alpha_lr = 0.0
fs_schedule = "cos"
fs_m_min = 0.4
fs_detach = True
fs_clip = 1.0
lr = 3e-5
bsz = 2
eval_bsz = 8
max_steps = 180
eval_every = 90
