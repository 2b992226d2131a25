"""Search and confirmation on secondary structure of proteins, from scratch, on real labels.

    python search.py configs/search_protein_ss.py
    python search.py configs/search_protein_ss.py --overrides.task_args="{'data': 'train.jsonl', 'val_data': 'v.jsonl'}"
    python report.py out/search_protein_ss/records.jsonl

Downloads FLIP's copy of NetSurfP-2.0 (2 MB) once, or takes your files. 3,420 steps of 32 windows.
"""

task_config = "configs/protein_ss_scratch.py"
candidates = {
    "open": {},  # the configuration's own: sigmoid(0) = 0.5, trained at 1e-2
    "fixed": {"alpha_lr": 0.0},
    "head": {"fs_gate": "head", "alpha_head_lr": 1e-2},
    "weak": {"fs_alpha_init": -3.0},
    "nonorm": {"fs_norm": False},
    "sched_cos": {"fs_schedule": "cos", "fs_m_min": 0.4},
}
bsz = 32
quick_steps = 60
medium_steps = 120
controls = ["gate forced to zero", "trained start state", "read twice"]  # there is no instruction to move
