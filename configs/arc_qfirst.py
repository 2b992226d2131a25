"""ARC-Challenge with the question before the options: the control of configs/arc_optionsfirst.py.

    python train_sft.py configs/arc_qfirst.py

All else is the same. A causal reader now knows what the options are about when it reads them, so a seed has less to
tell; a gain that is as large here as there is not due to knowing the question.

Published: -0.52 points over 3 seeds, +0.05 over 5 seeds; not comparable, as said there. Not run here with the real
weights, so there is no expected result; not measured on a GPU.
"""

model = "rwkv7-g1d-0.1b-20260129-ctx8192"
tokenizer = "world"
task = "arc"
task_args = {"question": "first", "max_prompt_tokens": 512}
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
