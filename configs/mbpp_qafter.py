"""MBPP with the problem before 3072 tokens of notes: the official 0.1B checkpoint, one trained gate a layer from 8 on.

    python train_sft.py configs/mbpp_qafter.py

Downloads the checkpoint (382 MB), the World vocabulary (1 MB) and mbpp.jsonl (0.6 MB) once; needs Linux, because what
the model writes is executed (common/sandbox.py). "Question after" is the published name: notes stand between the
problem and the place of the answer. The settings are those of the published search's winner, both arms with the steps
of its short runs. Published at equal steps over 3 seeds: +1.00, +0.32 and -0.82 points of teacher-forced token
accuracy, best of several evaluations on 8 samples, from a checkpoint whose low-rank factors were swapped; its headline
of +13.6 compares 380 steps with 180. Nothing was executed there, so there is no pass@1 to compare with. Problems with
code over 160 tokens, which were cut there, are left out here. Not run here with the real weights.
"""

model = "rwkv7-g1d-0.1b-20260129-ctx8192"
tokenizer = "world"
task = "mbpp"
task_args = {"val_split": "test", "max_prompt_tokens": 3072, "max_answer_tokens": 160}
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
