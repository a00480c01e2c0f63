"""Random GGML blocks: every bit pattern of the codes and group scales, with factors of a usual size."""

import numpy as np

from zigpass.formats.ggml_blocks import READERS

FACTOR_BYTES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}
"""Where the fp16 factors of a block start; random bytes there would be NaN or infinite at times."""


def random_blocks(name: str, rows: int, inputs: int, seed: int = 0) -> np.ndarray:
    """uint8 [rows, bytes of a row]."""
    generator = np.random.default_rng(seed)
    count = inputs // (256 if name.endswith("_K") else 32)
    blocks = generator.integers(0, 256, (rows, count, READERS[name].size), dtype=np.uint8)
    for start in FACTOR_BYTES[name]:
        factors = (generator.standard_normal((rows, count, 1)) * 0.01).astype(np.float16)
        blocks[..., start : start + 2] = factors.view(np.uint8)
    return blocks.reshape(rows, -1)
