"""Function bodies of the zigpass ops: what a runtime runs that has no kernel for them.

Inactive entries of x are set to zero and the product is dense, in ops that runtimes know to be fast: onnxruntime turns
`DequantizeLinear` of a 4-bit constant followed by `MatMul` into its own int4 kernel. One row is sparse and more rows
are dense by arithmetic on the threshold; an `If` around the weights makes onnxruntime fail to load the file.
"""

from __future__ import annotations

from typing import Any, Final

from .forms import DOMAIN, OpName, WeightForm

_FORMULA: Final = {
    "Linear": "Y = W x, where entries of x below `threshold` (1 or K entries) count as zero if x is one row.",
    "GatedMlp": (
        "Y = W_down (act(W_gate x) * (W_up x)); if x is one row, entries of x below `threshold_in` and entries of the"
        " input of W_down below `threshold_mid` count as zero."
    ),
}

_MASK: Final = """
 {p}size = Size ({x})
 {p}features = Shape <start = -1> ({x})
 {p}is_one_row = Equal ({p}size, {p}features)
 {p}nothing = Constant <value = float {{0.0}}> ()
 {p}least = Where ({p}is_one_row, {threshold}, {p}nothing)
 {p}magnitude = Abs ({x})
 {p}is_inactive = Less ({p}magnitude, {p}least)
 {out} = Where ({p}is_inactive, {p}nothing, {x})"""

_PRODUCT: Final = """
 {p}{part}_matrix = DequantizeLinear <axis = 0, block_size : int = @{p}group_size> ({p}{part}, {p}wide_scale{zero})
 {out} = MatMul ({x}, {p}{part}_matrix)"""

_ADD_MINIMUM: Final = """
 {p}groups = Shape <start = 0, end = 1> ({p}scale)
 {p}rest = Constant <value_ints = [-1]> ()
 {p}group_length = Constant <value_int : int = @{p}group_size> ()
 {p}group_lengths = Reshape ({p}group_length, {p}rest)
 {p}grouped_shape = Concat <axis = 0> ({p}rest, {p}groups, {p}group_lengths)
 {p}grouped = Reshape ({x}, {p}grouped_shape)
 {p}last = Constant <value_ints = [-1]> ()
 {p}group_sums = ReduceSum <keepdims = 0> ({p}grouped, {p}last)
 {p}flat_shift = MatMul ({p}group_sums, {p}wide_minimum)
 {p}product_shape = Shape ({p}product)
 {p}shift = Reshape ({p}flat_shift, {p}product_shape)
 {out} = Add ({p}product, {p}shift)"""

_COLUMN_SCALES: Final = """
 {p}last = Constant <value_ints = [-1]> ()
 {p}blocks = Constant <value_ints = [1, 1, 8]> ()
 {p}num_blocks = Shape <start = 1, end = 2> ({p}scale6)
 {p}num_columns = Shape <start = 0, end = 1> ({p}scale6)
 {p}flat = Concat <axis = 0> ({p}num_columns, {p}last)
 {p}first = Constant <value_ints = [0]> ()
 {p}along = Constant <value_ints = [1]> ()"""

_COLUMN_SCALE: Final = """
 {p}{half}_wide = Cast <to = 1> ({p}{half})
 {p}{half}_cubes = Unsqueeze ({p}{half}_wide, {p}last)
 {p}{half}_tiled = Tile ({p}{half}_cubes, {p}blocks)
 {p}{half}_flat = Reshape ({p}{half}_tiled, {p}flat)
 {p}{half}_blocks = Slice ({p}{half}_flat, {p}first, {p}num_blocks, {p}along)
 {p}{six}_wide = Cast <to = 1> ({p}{six})
 {p}{out} = Mul ({p}{half}_blocks, {p}{six}_wide)"""

_COLUMN_PRODUCT: Final = """
 {p}{part}_matrix = DequantizeLinear <axis = 1, block_size = 32> ({p}{part}, {p}wide_scale)
 {out} = MatMul ({x}, {p}{part}_matrix)"""

_COLUMN_MINIMUM: Final = """
 {p}block_shift = MatMul ({x}, {p}wide_minimum)
 {p}block_shifts = Unsqueeze ({p}block_shift, {p}last)
 {p}block_rows = Constant <value_ints = [32]> ()
 {p}product_shape = Shape ({p}product)
 {p}leading = Shape <end = -1> ({p}product)
 {p}split = Concat <axis = 0> ({p}leading, {p}num_blocks, {p}block_rows)
 {p}product_blocks = Reshape ({p}product, {p}split)
 {p}shifted_blocks = Sub ({p}product_blocks, {p}block_shifts)
 {p}padded = Reshape ({p}shifted_blocks, {p}product_shape)
 {p}num_rows_scalar = Constant <value_int : int = @{p}num_rows> ()
 {p}num_rows_list = Reshape ({p}num_rows_scalar, {p}last)
 {out} = Slice ({p}padded, {p}first, {p}num_rows_list, {p}last)"""

_NBITS: Final = """
 {out} = com.microsoft.MatMulNBits <K : int = @{p}K, N : int = @{p}N, bits : int = @bits,
   block_size : int = @{p}block_size, accuracy_level : int = @accuracy_level> ({inputs})"""


def make_function(op: OpName, opset: int) -> Any:
    """The `onnx.FunctionProto` of an op for an opset of the default domain."""
    import onnx.parser

    function = onnx.parser.parse_function(function_text(op, opset))
    function.doc_string = _FORMULA["Linear" if op.activation is None else "GatedMlp"]
    return function


def function_text(op: OpName, opset: int) -> str:
    """The function in ONNX's text form."""
    imports = [f'"" : {opset}']
    if op.form.is_nbits or (op.activation is not None and op.activation.needs_microsoft):
        imports.append('"com.microsoft" : 1')
    header = f'<domain: "{DOMAIN}", opset_import: [{", ".join(imports)}]>'
    signature = f"{op} <{', '.join(op.attributes)}> ({', '.join(op.inputs)}) => (Y)"
    return f"{header}\n{signature} {{{_lines(op)}\n}}"


def _lines(op: OpName) -> str:
    if op.activation is None:
        return _MASK.format(p="", x="X", threshold="threshold", out="x") + _matmul(op.form, "", "x", "Y")
    return "".join(
        (
            _MASK.format(p="in_", x="X", threshold="threshold_in", out="x"),
            _matmul(op.form, "gate_", "x", "gate"),
            _matmul(op.form, "up_", "x", "up"),
            f"\n {op.activation.body}\n middle = Mul (activated, up)",
            _MASK.format(p="mid_", x="middle", threshold="threshold_mid", out="kept"),
            _matmul(op.form, "down_", "kept", "Y"),
        )
    )


def _matmul(form: WeightForm, p: str, x: str, out: str) -> str:
    """Lines that compute `out` = W `x` from the inputs that start with `p`."""
    if form.is_nbits:
        inputs = ", ".join((x, *(f"{p}{part}" for part in form.parts)))
        return _NBITS.format(p=p, inputs=inputs, out=out)
    if form.zero == "Column":
        lines = _COLUMN_SCALES.format(p=p)
        lines += _COLUMN_SCALE.format(p=p, half="d", six="scale6", out="wide_scale")
        lines += _COLUMN_SCALE.format(p=p, half="dmin", six="min6", out="wide_minimum")
        lines += _halves(form, p, x, f"{p}product", _COLUMN_PRODUCT)
        return lines + _COLUMN_MINIMUM.format(p=p, x=x, out=out)
    lines = f"\n {p}wide_scale = Cast <to = 1> ({p}scale)"
    if form.zero == "SubInt":
        return lines + _halves(form, p, x, out, _PRODUCT)
    if form.zero == "AddFloat":
        lines += f"\n {p}wide_minimum = Cast <to = 1> ({p}minimum)"
    else:
        lines += f"\n {p}wide_zero = Cast <to = 1> ({p}zero)\n {p}scaled_zero = Mul ({p}wide_scale, {p}wide_zero)"
        lines += f"\n {p}wide_minimum = Neg ({p}scaled_zero)"
    return lines + _halves(form, p, x, f"{p}product", _PRODUCT) + _ADD_MINIMUM.format(p=p, x=x, out=out)


def _halves(form: WeightForm, p: str, x: str, out: str, product: str) -> str:
    """The product with the codes; of 8-bit codes, 16 times the high halves plus the low halves."""

    def one(part: str, zero: str, result: str) -> str:
        given = f", {p}{zero}" if form.zero == "SubInt" else ""
        return product.format(p=p, x=x, part=part, zero=given, out=result)

    if form.bits == 4:
        return one("codes", "zero", out)
    lines = one("high", "zero_high", f"{p}sixteenth") + one("low", "zero_low", f"{p}low_product")
    lines += f"\n {p}sixteen = Constant <value = float {{16.0}}> ()"
    lines += f"\n {p}high_product = Mul ({p}sixteenth, {p}sixteen)"
    return lines + f"\n {out} = Add ({p}high_product, {p}low_product)"
