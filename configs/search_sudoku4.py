"""Search and confirmation on 4x4 Sudoku filled in place, from scratch. No downloads.

    python search.py configs/search_sudoku4.py
    python report.py out/search_sudoku4/records.jsonl

14,500 steps of 64 boards.
"""

task_config = "configs/sudoku4_scratch.py"
candidates = {
    "open": {},  # the configuration's own: sigmoid(0) = 0.5, trained at 1e-2
    "fixed": {"alpha_lr": 0.0},
    "head": {"fs_gate": "head", "alpha_head_lr": 1e-2},
    "weak": {"fs_alpha_init": -3.0},
    "late": {"fs_layer_start": 3},
}
bsz = 64
quick_steps = 250
medium_steps = 500
controls = ["gate forced to zero", "trained start state", "read twice"]  # there is no instruction to move
