"""Search and confirmation on retrieval, from scratch: 8 pairs, the question behind them. No downloads.

    python search.py configs/search_retrieval.py
    python report.py out/search_retrieval/records.jsonl

What the gate starts from and how it may move; the control puts the question first. About 14,000 steps of 64 rows.
"""

task_config = "configs/retrieval_scratch.py"
candidates = {
    "open": {},  # the configuration's own: sigmoid(0) = 0.5, trained at 1e-2
    "fixed": {"alpha_lr": 0.0},
    "head": {"fs_gate": "head", "alpha_head_lr": 1e-2},
    "weak": {"fs_alpha_init": -3.0},
    "nonorm": {"fs_norm": False},
    "detach": {"fs_detach": True},
}
bsz = 64
quick_steps = 200
medium_steps = 400
first = {"question": "first"}
