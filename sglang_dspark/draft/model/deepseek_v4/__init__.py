"""DeepSeek-V4's own drafter ("DSpark-5"), as it ships inside its target. In order of import:

- ``config``: the ``dspark_*`` keys of the target's config.json, strictly
- ``drafter``: three stages of transformers' own modules over a sliding window
- ``names``: the checkpoint's tensor names, and ours
- ``quantised``: FP8 blocks and FP4 pairs, made plain as they are read
- ``checkpoint``: the bundled layout and a folder of its own, read and written
"""
