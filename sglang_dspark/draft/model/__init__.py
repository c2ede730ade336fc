"""The drafter: what it computes and the files it comes in. In order of import:

- ``config_file``: what writes itself as ``config.json``
- ``config``: ``config.json``, strictly
- ``ends``: embedding and lm_head, shared with the target
- ``layers``: norms, rotary embeddings, attention of blocks over a context
- ``heads``: Markov bias and confidence, slot after slot
- ``model``: ``Drafter``, training and decoding passes
- ``eagle``: the autoregressive baseline
- ``tensors``: checkpoint folders, read and written whole
- ``deepseek_v4``: DeepSeek-V4's own drafter, bundled with its target
- ``conventions``: the config files that other trainers write, read and written
- ``target_cache``: a target's keys and values while decoding
- ``families``: in what kinds of targets differ
- ``target``: the seam to transformers
- ``checkpoint``: a folder in DeepSpec's layout, whole or not at all
- ``recipes``: configurations by name, released and laptop-sized
"""
