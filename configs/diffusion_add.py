"""Masked diffusion: 93572084+16640295=11____379, the middle digits of a sum. From scratch, no downloads.

    python train_diffusion.py configs/diffusion_add.py
    python train_diffusion.py configs/diffusion_add.py --n_layer=4 --max_steps=4000

All that is needed stands to the left of the blanks: a seed is not what is missing, and its ceiling without one is 1.
What makes it hard is a carry over eight digits. Published at 200 steps: .101 -> .113, both chance.
"""

task = "infill"
task_args = {"kind": "add", "n_digits": 8}
tokenizer = "chars:0123456789+=_#"
threads = 1
