"""Punctuation and case restoration on HotpotQA text, official 0.1B checkpoint, head gate from layer 8.

    python train_sft.py configs/punc_head_l8.py
"""

model = "rwkv7-g1d-0.1b-20260129-ctx8192"
tokenizer = "world"
task = "punc"
