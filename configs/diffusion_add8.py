"""Masked diffusion: 93572084+16640295=_________, all of a sum of eight digits. From scratch, no downloads.

    python train_diffusion.py configs/diffusion_add8.py

In training rows each number has one to eight digits behind leading zeros, and any share of the blanks is shown: where
one number has ended a sum is a copy, which is learnt first, and from there the table and the carries. Without such rows
eight digits stay at chance (diffusion_add.py). Evaluated on numbers with eight random digits; `middle` are the four
blanks that were published. On one CPU thread about 23 minutes; right digits .99 and .98 without a seed, .98 and .99
with one (two seeds); long carries are wrong in both arms.
"""

task = "infill"
task_args = {"kind": "add", "n_digits": 8, "n_blanks": 9, "ease": 2}
tokenizer = "chars:0123456789+=_#"
mask = "random"
n_layer = 4
max_steps = 2000
arms = ["off", "on"]
decoders = ["one pass", "iterative"]
more_sets = {"middle": {"n_blanks": 4}, "fresh": {}}
threads = 1
