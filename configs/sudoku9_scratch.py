"""9x9 Sudoku with 16 random blanks and one solution, filled in where they stand, from scratch. No downloads.

    python train_sft.py configs/sudoku9_scratch.py

A causal reader fills a blank from the clues before it. The score is the share of blanks that are right; what minutes on
a CPU reach stays below the level "legal digits" (0.92: with so few blanks one digit is nearly always left by the clues
in a cell's own row, column and box). No validation board is a training board, also not with its digits renamed.

CPU, 1 thread, 0.8 GiB: about 3 minutes of training an arm.
"""

task = "sudoku"
task_args = {"side": 9, "blanks": 16, "unique": True}
tokenizer = "chars:123456789_#"
n_layer = 4
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
threads = 1
