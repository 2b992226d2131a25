"""Masked diffusion: {"a":93572084,"b":________________,"c":16640295}, b is a followed by c. No downloads.

    python train_diffusion.py configs/diffusion_struct.py
    python train_diffusion.py configs/diffusion_struct.py --max_steps=200

Half of the blanks stand to the left as well, so a causal reader can get .55. Sizes as published; three arms, on one CPU
thread about 6 minutes. Published: 200 steps .547 -> .745, 1000 steps .544 -> .924.
"""

task = "infill"
task_args = {"kind": "struct", "n_digits": 8}
tokenizer = 'chars:0123456789{"a:,bc}_#'
threads = 1
w0_first = [-3.0, 3.0]  # these three: neighbouring masks look different sooner to the layer above
common_key = 1.0
ln1_first = 0.3
x_k_above = [0.0, 10.0]  # what neighbouring masks read differs in a digit
