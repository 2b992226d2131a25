"""Masked diffusion on bytes of a text file, any share of them masked. From scratch; from a checkpoint with --model.

    python train_diffusion.py configs/diffusion_text.py --task_args.data=book.txt
    python sample.py --model=out/RUN --rounds=16

Windows of 128 bytes, the share of masks drawn uniformly for each. In the sample command byte 1 is the mask.
"""

task = "text"
task_args = {"length": 128, "mask": "random"}
tokenizer = "bytes"
n_layer = 4
n_embd = 256
head_size = 64
bsz = 16
max_steps = 2000
decoders = ["one pass", "iterative"]
arms = ["off", "on"]
