"""In-place repair, from scratch, both arms: the shortest demonstration of what Future-Seed does. No downloads.

    python train_sft.py configs/quickstart.py

The model reads `L=93572084|M=________|R=16640295` and has to fill M with R, which stands to its right. A causal reader
can only guess (1 in 10); with Future-Seed, a layer starts from what the one below concluded about the whole line.

CPU, 1 thread, 0.5 GiB: 50 seconds of training an arm, two minutes in all. Expected over 5 seeds (mean and sd, LOG.md):
accuracy off 0.108 +- 0.005, the ceiling of a causal reader being 0.1; on 0.986 +- 0.022; with another row's seed or a
random one 0.10.
"""

task = "infill"
task_args = {"kind": "rightcopy", "n_digits": 8}
tokenizer = "chars:0123456789LMR=|_#"
n_layer = 3
n_embd = 128
head_size = 32
compare = True
fs_alpha_init = 0.0  # sigmoid(0) = 0.5: nothing pretrained has to be protected
alpha_lr = 1e-2
lr = 4e-3
weight_decay = 0.0
bsz = 32
max_steps = 500
eval_every = 250
eval_bsz = 128
log_every = 50
n_show = 1
threads = 1  # so small a model gains little from a second one, and suffers if that processor is busy
