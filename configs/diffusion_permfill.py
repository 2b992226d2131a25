"""Masked diffusion: put items into an order that stands to the right of the blanks, two of them shown. No downloads.

    python train_diffusion.py configs/diffusion_permfill.py
    python train_diffusion.py configs/diffusion_permfill.py --n_layer=12 --n_embd=256 --task_args.n_min=24 \
        --task_args.n_max=24 --task_args.n_test=24 \
        --more_sets="{'28 items': {'n_test': 28}, '32 items': {'n_test': 32}, '36 items': {'n_test': 36}}"

Trained on 6 to 8 items, evaluated on 7 and on lengths that were never trained; in rounds, at once, and as an assignment
(pip install scipy). On one CPU thread about 25 minutes; whole rows in rounds: 0 without a seed, .73 and .84 with one
(two seeds). The second command, not run here, is the published size at the published lengths, with steps and batch of
ours. Published, after 1200 steps with a seed: whole rows .99 at the trained length of 24, and .83, .12 and 0 at 28, 32
and 36; no arm without one was published.
"""

task = "permute"
task_args = {"kind": "permfill", "n_min": 6, "n_max": 8, "n_test": 7, "anchors": 2, "metric": "accuracy"}
tokenizer = "chars:0123456789abcdefghijklmnopqrstuvwxyzMRO=|;:_#"
mask = "random"
n_layer = 4
max_steps = 2000
arms = ["off", "on"]
decoders = ["iterative", "one pass", "assignment"]
more_sets = {"5 items": {"n_test": 5}, "9 items": {"n_test": 9}, "10 items": {"n_test": 10}}
threads = 1
