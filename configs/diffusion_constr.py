"""Masked diffusion: P=93572084|M=________|R=16, M is the last digit of P, then the two of R in turns. No downloads.

    python train_diffusion.py configs/diffusion_constr.py
    python train_diffusion.py configs/diffusion_constr.py --task_args.n_digits=16

Sizes as published; three arms, on one CPU thread about 5 minutes. Published: 16 digits, 1000 steps .16 -> .74.
"""

task = "infill"
task_args = {"kind": "constr", "n_digits": 8}
tokenizer = "chars:0123456789PMR=|_#"
threads = 1
