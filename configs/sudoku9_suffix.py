"""9x9 Sudoku whose last 40 cells are blank, the answer is the whole board: the official 0.1B checkpoint.

    python train_sft.py configs/sudoku9_suffix.py

Downloads the checkpoint (382 MB) and the World vocabulary (1 MB) once. The published negative: over 3 seeds of 180
seconds each, Future-Seed lost 28.61 points (and loss went up by 1.55); with 40 blanks at the front, where a seed should
help, -0.09. Not comparable: equal seconds rather than equal steps, 41 tokens of two digits, half of them clues that
only have to be copied, a checkpoint whose low-rank factors were swapped. Steps were not published, 400 is our choice.
40 blanks in a row leave several solutions: `valid` counts any of them. Not run here.
"""

model = "rwkv7-g1d-0.1b-20260129-ctx8192"
tokenizer = "world"
task = "sudoku"
task_args = {"side": 9, "blanks": 40, "where": "suffix", "form": "board"}
n_val = 256
compare = True
fs_layer_start = 6
fs_alpha_init = -2.0
alpha_lr = 0.0
fs_detach = True
fs_clip = 1.0
lr = 3e-5
bsz = 8
max_steps = 400
eval_every = 50
