"""Secondary structure of proteins (helix, strand, neither) from the sequence alone, from scratch.

    python train_sft.py configs/protein_ss_scratch.py
    python train_sft.py configs/protein_ss_scratch.py --task_args.data=train.jsonl.gz --task_args.val_data=val.jsonl
    python train_sft.py configs/protein_ss_scratch.py --task_args.lag=8     # control: labels wait for 8 more residues

Downloads FLIP's copy of NetSurfP-2.0 (2 MB) once, or takes your files. Windows of 48 residues, each followed by a mask
that its label goes into: a causal reader knows what stands before a residue, what stands behind it comes by the seed.
The lag gives a causal reader the near part of that without any seed.

CPU, 1 thread, 0.8 GiB: about 2 minutes of training an arm. While tuning (one seed, 300 steps, 256 windows): Q3 off
0.556, on 0.590; always saying C 0.363, the most frequent label (H) 0.426. LOG.md has the runs that count.
"""

task = "protein_ss"
task_args = {"form": "blanks", "layout": "interleaved", "max_residues": 48, "min_residues": 30}
tokenizer = "chars:ACDEFGHIKLMNPQRSTVWYX=_#"
n_layer = 3
n_embd = 128
head_size = 32
compare = True
fs_alpha_init = 0.0  # sigmoid(0) = 0.5: nothing pretrained has to be protected
alpha_lr = 1e-2
lr = 4e-3
weight_decay = 0.0
bsz = 32
max_steps = 400
eval_every = 200
eval_bsz = 128
log_every = 50
n_show = 1
threads = 1
