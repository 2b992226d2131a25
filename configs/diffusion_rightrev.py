"""Masked diffusion, in-place copy from the right, backwards: L=93572084|M=________|R=16640295. No downloads.

    python train_diffusion.py configs/diffusion_rightrev.py
    python train_diffusion.py configs/diffusion_rightrev.py --max_steps=200

Sizes as published; three arms, on one CPU thread about 5 minutes. Published: 200 steps .118 -> .773.
"""

task = "infill"
task_args = {"kind": "rightrev", "n_digits": 8}
tokenizer = "chars:0123456789LMR=|_#"
threads = 1
w0_first = [-3.0, 3.0]  # these three: neighbouring masks look different sooner to the layer above
common_key = 1.0
ln1_first = 0.3
