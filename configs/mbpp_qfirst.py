"""MBPP with the problem after 3072 tokens of notes, next to the answer: the control of configs/mbpp_qafter.py.

    python train_sft.py configs/mbpp_qfirst.py

Everything but the order is as there. "Question first" is the published name of this order, in which the problem comes
last: a causal reader needs nothing that it has read before. Published in equal time (360 s, 3 seeds, 4096 tokens):
-2.54 points of teacher-forced token accuracy, and -1.91 with the problem before the notes; neither is comparable, see
there. Not run here with the real weights.
"""

model = "rwkv7-g1d-0.1b-20260129-ctx8192"
tokenizer = "world"
task = "mbpp"
task_args = {"val_split": "test", "order": "notes_first", "max_prompt_tokens": 3072, "max_answer_tokens": 160}
n_train = 320
n_val = 80
compare = True
fs_layer_start = 8
alpha_lr = 5e-4
fs_detach = True
fs_clip = 1.0
lr = 3e-5
bsz = 2
micro_bsz = 1
eval_bsz = 8
max_steps = 180
eval_every = 90
