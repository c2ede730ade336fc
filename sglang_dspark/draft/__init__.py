"""Drafters: the model, its data, training, decoding, evaluation and calibration (PyTorch).

config -> heads -> model -> checkpoint is the drafter itself; target is the seam to transformers;
losses is the training objective; recipes are the released and the laptop configurations; eagle is
the autoregressive baseline. Nothing here imports sglang, the simulator or the analysis.
"""
