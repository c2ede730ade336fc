"""Lossless decoding, evaluation and calibration."""
