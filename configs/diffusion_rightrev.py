"""Masked diffusion, in-place copy from the right, backwards: L=93572084|M=________|R=16640295. No downloads.

    python train_diffusion.py configs/diffusion_rightrev.py
    python train_diffusion.py configs/diffusion_rightrev.py --max_steps=200 --a0_first=[] --lr_schedule=warmdown

Sizes as published; three arms, on one CPU thread about 5 minutes. Published: 200 steps .118 -> .773.
"""

task = "infill"
task_args = {"kind": "rightrev", "n_digits": 8}
tokenizer = "chars:0123456789LMR=|_#"
threads = 1
