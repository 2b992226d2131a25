"""Masked diffusion: 93572084+16640295=11____379, the middle digits of a sum. From scratch, no downloads.

    python train_diffusion.py configs/diffusion_add.py --max_steps=200 --a0_first=[] --lr_schedule=warmdown
    python train_diffusion.py configs/diffusion_add.py --max_steps=200 --task_args.ease=5 --fs_alpha_init=-2

All that is needed stands to the left of the blanks, and the ceiling without a seed is 1. The first command, on random
digits, stays at chance, here as published (200 steps: .101 -> .113): the first of the blanks needs two places and a
carry at once. In the training rows of the second many places are easy, one of their digits being 0: .16 without a seed,
.15 with one. All of the sum, learnt well: diffusion_add8.py.
"""

task = "infill"
task_args = {"kind": "add", "n_digits": 8}
tokenizer = "chars:0123456789+=_#"
threads = 1
