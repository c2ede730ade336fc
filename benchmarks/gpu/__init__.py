"""What needs a GPU, ready to run: ``bash benchmarks/gpu.sh draft|worker|steer RESULTS``.

- ``servers``: models without weights, and servers on them
- ``simulated_acceptance``: a known law of acceptance for SGLang's own DSPARK
- ``worker``: the worker lane's steps
- ``steer``: SGLang's own DSPARK, bare and steered
- ``kernels``: Triton beside PyTorch
- ``drafter``: training and drafting at full size
"""
