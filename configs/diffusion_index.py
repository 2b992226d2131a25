"""Masked diffusion: A=93572084|Y=____|I=2,5, Y is A from place 2 to place 5. From scratch, no downloads.

    python train_diffusion.py configs/diffusion_index.py --max_steps=200 --a0_first=[] --lr_schedule=warmdown
    python train_diffusion.py configs/diffusion_index.py --n_layer=4

The places stand to the right of what they ask for: a reader without a seed can get .358 (the commonest of the digits
that it may be). Published at 200 steps: .343 -> .289, both at that ceiling or below.
"""

task = "infill"
task_args = {"kind": "index", "n_digits": 8}
tokenizer = "chars:0123456789AYI=|,_#"
threads = 1
