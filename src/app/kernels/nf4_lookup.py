"""The 16 NF4 values, looked up in registers: byte by byte with PRMT, 22 instructions for 8 weights, no memory access.

With tables in memory, two look-ups a byte, bitsandbytes' GEMV reads 0.77 TB/s on an H100 and a first Triton kernel did
0.70 (2026-11).
"""

from __future__ import annotations

import torch

from app.kernels.triton_support import jit, tl, triton

# bitsandbytes' table (csrc/kernels.cu; QLoRA, arXiv 2305.14314, appendix E).
NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def _lookup_assembly() -> str:
    """PTX that turns four bytes ($4) into the bfloat16 values of their upper ($0, $1) and lower nibbles ($2, $3).

    PRMT picks four bytes out of eight by the low three bits of four selectors. The nibbles themselves are the
    selectors: once in the table's first half, once in its second, and their bit 3 chooses between the two. Upper and
    lower bytes of the 16-bit values are looked up apart and put together last.
    """
    bits = [int(value) & 0xFFFF for value in torch.tensor(NF4_VALUES).bfloat16().view(torch.int16)]
    halves = {"h": [value >> 8 for value in bits], "l": [value & 255 for value in bits]}

    def word(part: str, start: int) -> str:
        return "0x" + "".join(f"{value:02x}" for value in reversed(halves[part][start : start + 4]))

    lines = [
        "{ .reg .b32 s, t, h, l, x;",
        "and.b32 s, $4, 0x77777777;",
        "shr.u32 t, $4, 1;",
        "and.b32 t, t, 0x44444444;",
        "or.b32 t, t, 0x32103210;",
    ]
    for place in (0, 1):
        if place:
            lines += ["shr.u32 s, s, 16;", "shr.u32 t, t, 16;"]
        for part in "hl":
            lines += [
                f"prmt.b32 {part}, {word(part, 0)}, {word(part, 4)}, s;",
                f"prmt.b32 x, {word(part, 8)}, {word(part, 12)}, s;",
                f"prmt.b32 {part}, {part}, x, t;",
            ]
        # Nibble 0 is the lower one of byte 0: odd places of the result are upper nibbles.
        lines += [f"prmt.b32 ${place}, l, h, 0x7351;", f"prmt.b32 ${2 + place}, l, h, 0x6240;"]
    return "\n".join([*lines, "}"])


_LOOKUP = tl.constexpr(_lookup_assembly()) if triton is not None else None


@jit
def decode_nibbles(byte, code, dtype: tl.constexpr, IN_REGISTERS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Values of the upper and the lower nibbles."""
    if IN_REGISTERS:
        upper, lower = tl.inline_asm_elementwise(
            _LOOKUP, "=r,=r,=r,=r,r", [byte], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        upper = tl.load(code + (byte >> 4).to(tl.int32)).to(dtype)
        lower = tl.load(code + (byte & 15).to(tl.int32)).to(dtype)
    return upper, lower
