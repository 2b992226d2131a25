"""Masked diffusion: 93572084+16640295=_________, all of a sum of eight digits. From scratch, no downloads.

    python train_diffusion.py configs/diffusion_add8.py

At a share of the places of a training row, drawn for the row, one of the two digits is 0, and any share of the blanks
is shown: there a sum is a copy, but for a carry, which is learnt first, and from there the table and the carries.
Without such places eight digits stay at chance (diffusion_add.py). Evaluated on numbers with eight random digits;
`middle` are the four blanks that were published. On one CPU thread about 6 minutes; right digits .98 without a
seed, .98 and .99 with one, in rounds 1.00 (two seeds); long carries are wrong in some rows.
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
