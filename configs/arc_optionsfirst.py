"""ARC-Challenge with the options before the question: the official 0.1B checkpoint, scalar gate from layer 6.

    python train_sft.py configs/arc_optionsfirst.py

Downloads the checkpoint (382 MB), the World vocabulary and the questions (2 MB) once. The settings are those of the
published runs (1000 questions, 8 a step, gate fixed at sigmoid(-2), seed normalised, detached and clipped), but for
their 240 seconds without a limit of steps: here 375 steps, three times through the questions, in both arms. All 299
development questions are evaluated, every time. `accuracy` is the likeliest label; chance is 0.25.

Published: +3.39 points over 3 seeds, then -2.03 over 5 seeds with 48 questions a step; the best of many evaluations on
128 to 384 questions drawn anew each time, from a checkpoint whose low-rank factors were swapped. Not comparable. Not
run here with the real weights, so there is no expected result; not measured on a GPU.
"""

model = "rwkv7-g1d-0.1b-20260129-ctx8192"
tokenizer = "world"
task = "arc"
task_args = {"question": "last", "max_prompt_tokens": 512}
n_train = 1000
n_val = 0  # all
compare = True
fs_layer_start = 6
fs_alpha_init = -2.0
alpha_lr = 0.0
fs_detach = True
fs_clip = 1.0
lr = 3e-5
bsz = 8
max_steps = 375
eval_every = 125
