"""Masked diffusion, in-place copy from the right: L=93572084|M=________|R=16640295. From scratch, no downloads.

    python train_diffusion.py configs/diffusion_rightcopy.py
    python train_diffusion.py configs/diffusion_rightcopy.py --max_steps=200
    python train_diffusion.py configs/diffusion_rightcopy.py --task_args.n_digits=16 --ln1_first=0.3 \
        --x_k_above=[0,10] --lr=6e-3

2 layers of width 128, heads of 32, 32 rows a step, as published; three arms, on one CPU thread about 5 minutes.
Published: 200 steps .109 -> .718; 16 digits, 1000 steps .11 -> .63. LOG.md has ours over five seeds.
"""

task = "infill"
task_args = {"kind": "rightcopy", "n_digits": 8}
tokenizer = "chars:0123456789LMR=|_#"
threads = 1
w0_first = [-3.0, 3.0]  # these two: neighbouring masks look different sooner to the layer above
common_key = 1.0
