"""LatentWire, second stage: goes on from a first one, with the first token counted fully and a louder prefix.

    python train_latent.py configs/latent_stage_b.py --init=out/RUN

Everything else, models and data included, is as in out/RUN, whose encoder and adapters it starts from. The settings are
those of the published log: no BOS between anchor and answer, first-token weight 1.0 instead of 0.5, prefix gain 1.15.
"""

bos = "none"
first_weight = 1.0
gain = 1.15
warm_steps = 0
