"""Masked diffusion: the keys of pairs in an order that stands to the right of the blanks. No downloads.

    python train_diffusion.py configs/diffusion_kvsort.py

Trained on 6 to 8 pairs, evaluated on 7 and on lengths that were never trained. On one CPU thread half an hour or more;
whole rows in rounds: 0 without a seed, .67 and .60 with one (two seeds). The published size, 20 pairs, is in
diffusion_kvsort20.py.
"""

task = "permute"
task_args = {"kind": "kvsort", "n_min": 6, "n_max": 8, "n_test": 7, "metric": "accuracy"}
tokenizer = "chars:0123456789abcdefghijklmnopqrstuvwxyzMRO=|;:_#"
mask = "random"
n_layer = 4
max_steps = 2000
arms = ["off", "on"]
decoders = ["iterative", "one pass", "assignment"]
more_sets = {"5 pairs": {"n_test": 5}, "9 pairs": {"n_test": 9}, "10 pairs": {"n_test": 10}}
threads = 1
