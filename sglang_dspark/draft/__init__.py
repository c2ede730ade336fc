"""Drafters: model, data, training, decoding, evaluation and calibration (PyTorch).

Nothing here imports sglang, the simulator or the analysis.

- ``model``: the drafter itself, its checkpoints, and the seam to its target
- ``data``: what it learns from: prompts, the target's answers, hidden states
- ``training``: the objective, the loop and its commands
- ``evaluation``: lossless decoding, and what it says of a drafter
- ``exchange``: other trainers' drafters, inspected and converted
- ``demo``: all stages on a tiny model, in one command
"""
