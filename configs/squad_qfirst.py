"""SQuAD v1.1, the question before the paragraph: the control of configs/squad_qafter.py.

    python train_sft.py configs/squad_qfirst.py

All else is the same. A causal reader now knows what to look for; a gain that is as large here as there is not due to
knowing the question.

Published: -0.66 points of teacher-forced token accuracy over 3 seeds; not comparable, as said there. Not run here with
the real weights, so there is no expected result; not measured on a GPU.
"""

model = "rwkv7-g1d-0.1b-20260129-ctx8192"
tokenizer = "world"
task = "squad"
task_args = {"question": "first", "max_prompt_tokens": 512, "max_answer_tokens": 24}
n_train = 2048
n_val = 512
compare = True
fs_layer_start = 6
fs_alpha_init = -2.0
alpha_lr = 0.0
fs_detach = True
fs_clip = 1.0
lr = 3e-5
bsz = 8
max_steps = 1600
eval_every = 400
