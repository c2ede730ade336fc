"""The Triton kernels as machine code, without a GPU: ``python -m benchmarks.compiled``.

- ``launches``: what a decode round launches, with its very arguments
- ``traffic``: the bytes that a launch moves, and the fewest that it could
- ``command``: compile, hold against the bounds, write
"""
