"""HotpotQA, the question before the paragraphs: the control of configs/hotpot_qafter_4096.py.

    python train_sft.py configs/hotpot_qfirst.py

All else is the same. A causal reader now knows what to look for; a gain that is as large here as there is not due to
knowing the question. In the published runs of this order, prompts over the limit were cut on the left, which removed
the question; here neither it nor a paragraph with a supporting fact is ever cut.

Published: +0.52 points of teacher-forced token accuracy over 5 seeds; not comparable, as said there. Not run here with
the real weights, so there is no expected result; not measured on a GPU.
"""

model = "rwkv7-g1d-0.1b-20260129-ctx8192"
tokenizer = "world"
task = "hotpot"
task_args = {"question": "first", "fill": "own", "max_prompt_tokens": 4096, "min_prompt_tokens": 1536}
n_train = 1000
n_val = 200
compare = True
fs_layer_start = 10
fs_alpha_init = -3.0
alpha_lr = 0.0
fs_detach = True
fs_clip = 1.0
lr = 3e-5
bsz = 2
eval_bsz = 8
max_steps = 500
eval_every = 250
