"""Masked diffusion on 4x4 Sudoku: trained on 4 to 12 blanks, evaluated at 4 to 14; in one pass and in rounds.

    python train_diffusion.py configs/diffusion_sudoku4.py
    python sample.py --model=out/RUN --rounds=0

All boards, 1 in 4 for validation; any solution counts as valid, `exact` is the board that was dug out. The published
curve compares 4 layers without a seed with 12 layers with one; here both arms have the same 4. On one CPU thread about
17 minutes; valid boards .07 without a seed, .98 with one (two seeds, in rounds).
"""

task = "sudoku"
task_args = {"boards": "any", "blanks": [4, 5, 6, 7, 8, 9, 10, 11, 12], "metric": "valid"}
tokenizer = "chars:1234_#"
mask = "random"
n_layer = 4
bsz = 64
max_steps = 2000
arms = ["off", "on"]
decoders = ["iterative", "one pass"]
more_sets = {
    "4 blanks": {"blanks": 4},
    "6 blanks": {"blanks": 6},
    "8 blanks": {"blanks": 8},
    "10 blanks": {"blanks": 10},
    "12 blanks": {"blanks": 12},
    "14 blanks": {"blanks": 14},
}
threads = 1
