"""Look up one of 8 pairs, from scratch: the question behind the pairs, or before them (control). No downloads.

    python train_sft.py configs/retrieval_scratch.py
    python train_sft.py configs/retrieval_scratch.py --task_args.question=first

The default of 64 pairs takes a GPU; 8 pairs fit into the state of a plain reader, so that both arms can learn both
orders, and what differs is how fast. CPU, 1 thread, 0.6 GiB: about 3 minutes of training an arm. Batches of 32, or
lr = 4e-3, left the plateau of guessing (accuracy 0.1) late or not at all.
"""

task = "retrieval"
task_args = {"n_pairs": 8, "key_len": 1, "value_len": 2, "question": "last"}
tokenizer = "chars:0123456789abcdefghijklmnopqrstuvwxyz=;?_#"
n_layer = 3
n_embd = 128
head_size = 32
compare = True
fs_alpha_init = 0.0  # sigmoid(0) = 0.5: nothing pretrained has to be protected
alpha_lr = 1e-2
lr = 2e-3
weight_decay = 0.0
bsz = 64
max_steps = 500
eval_every = 250
eval_bsz = 128
log_every = 50
n_show = 1
threads = 1
