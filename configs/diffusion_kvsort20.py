"""Masked diffusion: the keys of 20 pairs in an order that stands to the right of the blanks. No downloads.

    python train_diffusion.py configs/diffusion_kvsort20.py

Trained on 16 to 20 pairs, evaluated on 20 (as published) and on 12 and 24, which were never trained: rows are longer
than diffusion_kvsort.py's and have two to three times as many blanks. 4 layers, the seeded arm alone (the other one's
ceiling is computed, and it stays there), 40 minutes on one CPU thread: whole rows in rounds .63 and 1.00 (two seeds),
as an assignment (pip install scipy) .985 and 1.00. With --max_steps=2000, 10 minutes: .155 to .605 in rounds (four
runs). Published: 8 layers, 2400 steps of 256 rows, exact 0 -> 1.
"""

task = "permute"
task_args = {"kind": "kvsort", "n_min": 16, "n_max": 20, "n_test": 20, "metric": "accuracy"}
tokenizer = "chars:0123456789abcdefghijklmnopqrstuvwxyzMRO=|;:_#"
mask = "random"
n_layer = 4
max_steps = 8000
arms = ["on"]
decoders = ["iterative", "one pass", "assignment"]
more_sets = {"12 pairs": {"n_test": 12}, "24 pairs": {"n_test": 24}}
threads = 1
