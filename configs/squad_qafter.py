"""SQuAD v1.1, the question after the paragraph: the official 0.1B checkpoint, scalar gate from layer 6.

    python train_sft.py configs/squad_qafter.py

Downloads the checkpoint (382 MB), the World vocabulary (1 MB) and SQuAD (35 MB) once. As in the published runs: 2048
training and 512 validation questions, prompts of at most 512 tokens, answers of at most 24, gate fixed at sigmoid(-2),
and about as many steps as their 240 seconds gave. Their batch size and the other settings of the seed are not on
record; those of configs/arc_optionsfirst.py stand here.

Published: +0.88 points of teacher-forced token accuracy over 5 seeds (4 up), and -0.66 over 3 (none up) with the
question first: the best of some 30 evaluations, each arm's its own, where both arms had fallen to between 2 and 10 % by
the last, from a checkpoint whose low-rank factors were swapped. Not comparable with the F1 here. Not run here with the
real weights, so there is no expected result; not measured on a GPU.
"""

model = "rwkv7-g1d-0.1b-20260129-ctx8192"
tokenizer = "world"
task = "squad"
task_args = {"question": "last", "max_prompt_tokens": 512, "max_answer_tokens": 24}
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
