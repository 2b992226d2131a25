"""In-place repair, from scratch, both arms: the shortest demonstration of what Future-Seed does. No downloads.

    python train_sft.py configs/quickstart.py

The model reads `L=93572084|M=________|R=16640295` and has to fill M with R, which stands to its right. A causal reader
can only guess (1 in 10); with Future-Seed, layer 1 starts from what layer 0 concluded about the whole line.
"""

task = "infill"
task_args = {"kind": "rightcopy", "n_digits": 8}
tokenizer = "chars:0123456789LMR=|_#"
compare = True
