"""Compile every Triton kernel for a GPU that need not be there.

    python tests/runtime/kernels/compiled_kernels.py 80 90 100

The shapes are those of a served model: 151,936 tokens, 7 slots, rank 256 in bfloat16 and float32.
"""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sglang_dspark.runtime.kernels import triton_head, triton_lengths, triton_rejection
from sglang_dspark.runtime.kernels.triton_draw import TILE

F32, F64, I64 = "*fp32", "*fp64", "*i64"
TILES = 64


def build(capability: int, kernel: Any, types: str, options: dict[str, Any], **sizes: Any) -> None:
    """Down to machine code; ``types`` are those of the leading pointers, numbers are int32."""
    names = [parameter.name for parameter in kernel.params]
    given = dict(zip(names, types.split(), strict=False))
    signature = {name: "constexpr" if name in sizes else given.get(name, "i32") for name in names}
    pointers = [i for i, name in enumerate(names) if signature[name].startswith("*")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in sizes.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},
    )
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    print(capability, kernel.fn.__name__, sizes, f"{len(done.asm['cubin'])} bytes")


def main(capability: int) -> None:
    """All kernels in the shapes that their launches use."""
    eight = {"num_warps": 8}
    head, rejection, lengths = triton_head, triton_rejection, triton_lengths
    for weight, block, step in (
        ("*bf16", 16, 64),
        ("*bf16", 32, 64),
        ("*bf16", 64, 64),
        (F32, 16, 32),
    ):
        build(
            capability, head._bias, f"{F32} {weight} {weight} {F32} {F32} {F32} *i32",
            {"num_warps": 4 if block == 16 else 8}, BLOCK_R=block, BLOCK_V=head.BIAS_TOKENS,
            BLOCK_r=step, BIASED=True, UPCAST=False,
        )  # fmt: skip
    build(
        capability, head._bias, f"{F32} {F32} {F32} {F32} {F32} {F32} *i32", {"num_warps": 4},
        BLOCK_R=16, BLOCK_V=head.BIAS_TOKENS, BLOCK_r=16, BIASED=False, UPCAST=False,
    )  # fmt: skip
    build(
        capability, head._probabilities, f"{F32} {F32} {F32} {F32} *i32 {F64}", eight,
        BLOCK_V=TILE, BLOCK_N=2048,
    )  # fmt: skip
    build(capability, head._draw, f"{F32} {F64} {F64} {I64}", eight, BLOCK_V=TILE, BLOCK_N=TILES)
    build(
        capability, rejection._accept, f"{I64} {F32} {F32} {I64} {I64} {F64} {I64} {F64} {F64}",
        eight, BLOCK_K=8, BLOCK_V=TILE,
    )  # fmt: skip
    build(
        capability, rejection._next, f"{F32} {F32} {I64} {I64} {F64} {I64} {F64} {F64} {I64}",
        eight, BLOCK_V=TILE, BLOCK_N=TILES,
    )  # fmt: skip
    build(
        capability, lengths._survival, f"{F32} {F64} {F64} {F64}",
        {"num_warps": 1, "enable_fp_fusion": False}, BLOCK_R=32,
    )  # fmt: skip
    build(
        capability, lengths._assign, f"{F64} {I64}", {"num_warps": 4}, BLOCK_K=8,
        BLOCK_N=lengths.RIVALS,
    )  # fmt: skip


if __name__ == "__main__":
    for word in sys.argv[1:]:
        main(int(word))
