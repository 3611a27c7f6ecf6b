"""Random blocks of every ggml format that kvist packs, and what the gguf package makes of them.

Writes crates/kernels/tests/fixtures/quant/{KIND}.blocks (raw blocks), {KIND}.f32 (their weights, little endian), the
same for what the package's quantiser makes of weights.f32, and meta.json. Needs: gguf, numpy.
usage: make_quant_fixtures.py
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

OUT = Path(__file__).parent.parent / "crates/kernels/tests/fixtures/quant"
SEED = 7
# Where a block has f16 scales.
SCALES = {"Q8_0": [0], "Q4_0": [0], "Q5_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
# f16 bits: zeros, denormals, the largest, infinities, NaN, and usual ones.
SPECIAL = [0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E01, 0x3C00, 0xBC00, 0x1234]


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    for name, places in SCALES.items():
        kind = GGMLQuantizationType[name]
        length, size = GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (24 if length == 256 else 72, size), dtype=np.uint8)
        for place in places:
            half = blocks[:, place : place + 2].view("<u2")
            # Usual sizes in most blocks, every special one in the first.
            half[:] = (half & 0x8FFF) | 0x2000
            half[: len(SPECIAL), 0] = np.roll(SPECIAL, place)
        # All codes and scales at their ends.
        blocks[len(SPECIAL), max(places) + 2 :] = 0xFF
        blocks[len(SPECIAL) + 1, max(places) + 2 :] = 0x00
        blocks[len(SPECIAL) + 2, max(places) + 2 :] = 0x80
        with np.errstate(all="ignore"):
            weights = dequantize(blocks, kind)
        blocks.tofile(OUT / f"{name}.blocks")
        weights.astype("<f4").tofile(OUT / f"{name}.f32")
    weights = rng.standard_normal((8, 256)).astype(np.float32) * np.exp2(rng.integers(-8, 3, (8, 1))).astype(np.float32)
    weights[0, :32] = 0
    weights[1, 32:64] *= 1e-9
    weights.astype("<f4").tofile(OUT / "weights.f32")
    for name in ["Q8_0", "Q4_0"]:
        quantize(weights, GGMLQuantizationType[name]).tofile(OUT / f"{name}.encoded")
    meta = {"python": sys.version.split()[0], "gguf": version("gguf"), "numpy": np.__version__, "seed": SEED}
    (OUT / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


main()
