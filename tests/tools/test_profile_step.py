import pytest

from zigpass.tools.profile_step import Kernel, Launch, Parts, layer_of, part_of, split

STEP = [
    ("triton_red_fused_rms_norm", 0, 2),
    ("zigzag_gemv", 3, 10),
    ("zigzag_combine", 12, 3),
    ("fmha_cutlassF_bf16", 15, 5),
    ("triton_poi_fused_add", 20, 1),
    ("zigzag_gemv", 21, 20),
    ("zigzag_combine", 41, 2),
]


def trace(steps):
    return [Kernel(name, start + 100 * step, length) for step in range(steps) for name, start, length in STEP]


def test_a_step_is_split_into_parts():
    expected = Parts(
        attention=5,
        linears=12,
        head=22,
        other=3,
        gaps=1,
        kernels=7,
        by_name={
            "zigzag_gemv": (2, 30),
            "fmha_cutlassF_bf16": (1, 5),
            "zigzag_combine": (2, 5),
            "triton_red_fused_rms_norm": (1, 2),
            "triton_poi_fused_add": (1, 1),
        },
    )
    assert split(trace(3), 3) == expected
    assert STEP[-1][1] + STEP[-1][2] == 5 + 12 + 22 + 3 + 1  # the whole step
    assert split(reversed(trace(3)), 3) == expected


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("void tinygemm_m16n8k16_chunk_kernel<...>", "linears"),
        ("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "linears"),
        ("void cublasLt::splitKreduce_kernel", "linears"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("void pytorch_flash::flash_fwd_splitkv_kernel", "attention"),
        ("void cudnn::fusion::lean_reduction_kernel<false>", "attention"),
        ("triton_per_fused__softmax_3", "other"),
        ("triton_poi_fused_gemv_like_name", "other"),
        ("void at::native::index_elementwise_kernel", "other"),
    ],
)
def test_kernels_are_told_apart_by_their_names(name, part):
    assert part_of(name) == part


def test_the_launches_of_a_layer_in_the_middle_are_listed():
    """Copies and fills of memory are part of the chain, though not of the kernels that are counted."""
    step = [
        Kernel("fmha", 0, 5),
        Kernel("lean_reduction_kernel", 5.5, 1),
        Kernel("zigzag_gemv", 6, 9),
        Kernel("fmha", 20, 5),
        Kernel("lean_reduction_kernel", 25.5, 1),
        Kernel("Memset (Device)", 27, 1),
        Kernel("zigzag_gemv", 27.75, 9),
        Kernel("fmha", 40, 5),
        Kernel("gemv_of_the_head", 46, 5),
    ]
    expected = [
        Launch("fmha", 0, 5),
        Launch("lean_reduction_kernel", 0.5, 1),
        Launch("zigzag_gemv", -0.5, 9),
    ]
    assert layer_of(step) == expected
    parts = split([*step, *(Kernel(k.name, k.start + 100, k.duration) for k in step)], 2)
    assert parts.layer == expected
    assert parts.kernels == 8
    assert layer_of(step[:3]) == []


def test_a_head_without_a_summing_kernel_is_one_kernel():
    kernels = [Kernel("gemv", 0, 4), Kernel("gemv", 4, 9)]
    assert split(kernels, 1).head == 9
