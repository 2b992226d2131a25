"""Masked diffusion: the keys of 20 pairs in an order that stands to the right of the blanks. No downloads.

    python train_diffusion.py configs/diffusion_kvsort20.py

Trained on 16 to 20 pairs, evaluated on 20 (as published) and on 12 and 24, which were never trained: rows are longer
than diffusion_kvsort.py's and have two to three times as many blanks. Published: 8 layers, 2400 steps of 256 rows,
exact 0 -> 1. Here 4 layers and 32 rows a step, half an hour on one CPU thread, the seeded arm alone (the other one's
ceiling is computed): whole rows in rounds .61, .21, .16 and .33 (four runs), .43 with --max_steps=4000.
"""

task = "permute"
task_args = {"kind": "kvsort", "n_min": 16, "n_max": 20, "n_test": 20, "metric": "accuracy"}
tokenizer = "chars:0123456789abcdefghijklmnopqrstuvwxyzMRO=|;:_#"
mask = "random"
n_layer = 4
max_steps = 2000
arms = ["on"]
decoders = ["iterative", "one pass", "assignment"]
more_sets = {"12 pairs": {"n_test": 12}, "24 pairs": {"n_test": 24}}
threads = 1
