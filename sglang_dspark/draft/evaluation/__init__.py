"""Lossless decoding with a drafter, what it says of the drafter, and calibration.

In order of import:

- ``sampling``: from logits to the probabilities that tokens are drawn from
- ``rejection``: accept or resample
- ``decode``: draft -> plan -> verify -> commit, the reference for a server
- ``recording``: prompts to logged rounds, resumable
- ``reliability``: acceptance and confidences, with standard errors
- ``silent``: failures that raise no error, told from a recording
- ``lossless``: greedy answers beside the target's own
- ``speculation_profile``: acceptance in the file that other tools read
- ``report_figures``: pictures after the paper's Figures 2, 5 and 6
- ``evaluate``: the command that measures a drafter
- ``calibration_fit``: temperatures and biases, judged on rounds held out
- ``calibrate``: the command that fits them to logs
"""
