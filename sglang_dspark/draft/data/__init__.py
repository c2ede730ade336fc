"""What a drafter learns from. In order of the stages:

- ``templates``: templated text that a tiny target learns by heart
- ``prompts``: what the target is asked
- ``corpus``: the laptop corpora and their tokenizer
- ``samples``: what the target answered, appended to a log that survives a kill
- ``sampler``: answers of a target that fits here
- ``server``: answers of a server
- ``answers``: prompts to samples by either, resumable
- ``fingerprint``: whether prepared data still belongs to its target
- ``generate``: the command that makes samples
- ``states``: batches of the target's hidden states
- ``anchors``: which blocks a step learns from
- ``cached``: hidden states on disk
- ``cache``: the command that writes them
"""
