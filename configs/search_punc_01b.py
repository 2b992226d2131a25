"""The published candidates on punctuation, with the official 0.1B, searched and confirmed at equal budgets.

    python search.py configs/search_punc_01b.py
    python report.py out/search_punc_01b/records.jsonl results/published.jsonl

Not run here: it needs the official weights, the data and a GPU. Batch of 2 and steps as published (180 and 560), but
the baseline gets the longer budget too.
"""

task_config = "configs/punc_head_l8.py"
seeded = {"fs_layer_start": 8}
published = ["scalar", "trainable", "sched_cos", "sched_linear", "head", "inputgate", "nonorm", "nodetach", "l6", "l10"]
bsz = 2
quick_steps = 180
medium_steps = 560
prune = 0.3
first = {"order": "instruction_first"}
