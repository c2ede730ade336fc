"""The objective, the loop around it, and two commands. In order of import:

- ``config``: a run's settings, and which a resume must repeat
- ``losses``: the training objective in pieces, no [N*K, V] tensor
- ``memory``: what a run needs, told before its first step
- ``optim``: AdamW on flat float32 masters
- ``warm_start``: another checkpoint's weights to begin from
- ``loop``: blocks of states in, optimiser steps out, resumable at any kill
- ``train``: the command that trains a drafter
- ``pretrain``: the command that makes a small target
"""
