"""Conversion of a float32 graph to half precision (fp16 or bf16); normalisation, softmax and all sums stay float32.

ONNX Runtime's own converter gives all casts of a constant that several normalisations share the same name, which is not
a valid graph, and does not support bfloat16.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

# Operators that may compute in half precision: products, whose sums every engine keeps in float32, and operators that
# only move or compare values. All others stay float32; instance normalisation in fp16 is known to cause empty masks.
HALF_PRECISION_OPS = frozenset({
    "Conv", "ConvTranspose", "MatMul", "Gemm",
    "Relu", "LeakyRelu", "PRelu", "Elu", "Clip", "Add", "Concat", "MaxPool", "Pad",
    "Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand", "Gather",
    "DepthToSpace", "SpaceToDepth",
})  # fmt: skip


def convert_to_half(graph: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """Return a copy of ``graph`` whose :data:`HALF_PRECISION_OPS` compute in ``kind``, with casts between precisions.

    Input and output stay float32.

    Args:
        graph: A float32 graph without subgraphs.
        kind: ``TensorProto.FLOAT16`` or ``TensorProto.BFLOAT16``.
    """
    out = onnx.shape_inference.infer_shapes(graph, strict_mode=True)
    return _Halving(out, kind).result()


class _Halving:
    def __init__(self, model: onnx.ModelProto, kind: int) -> None:
        self._model = model
        self._kind = kind
        graph = model.graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        typed = [*graph.value_info, *graph.input, *graph.output]
        self._floats = {v.name for v in typed if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        self._floats |= {name for name, tensor in self._constants.items() if tensor.data_type == TensorProto.FLOAT}
        self._low: set[str] = set()  # tensors that are in half precision
        self._other: dict[str, str] = {}  # a tensor's name in the other precision
        self._nodes: list[onnx.NodeProto] = []
        self._new: list[onnx.TensorProto] = []

    def result(self) -> onnx.ModelProto:
        graph = self._model.graph
        outputs = {value.name for value in graph.output}
        for node in graph.node:
            low = node.op_type in HALF_PRECISION_OPS and all(name in self._floats for name in node.output)
            for k, name in enumerate(node.input):
                if name in self._floats:
                    node.input[k] = self._in(name, low=low)
            self._nodes.append(node)
            for k, name in enumerate(node.output):
                if low and name in outputs:  # the graph's own output keeps its name and its float32
                    node.output[k] = f"{name}_half"
                    self._nodes.append(helper.make_node("Cast", [node.output[k]], [name], to=TensorProto.FLOAT))
                elif low:
                    self._low.add(name)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in (*graph.initializer, *self._new) if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        return self._model

    def _in(self, name: str, *, low: bool) -> str:
        """Return the name of a tensor in the requested precision; add a cast or constant if there is none yet."""
        if (name in self._low) == low:
            return name
        if name not in self._other:
            self._other[name] = f"{name}_{'half' if low else 'full'}"
            if name in self._constants:
                self._new.append(self._halved_constant(name))
            else:
                kind = self._kind if low else TensorProto.FLOAT
                self._nodes.append(helper.make_node("Cast", [name], [self._other[name]], to=kind))
        return self._other[name]

    def _halved_constant(self, name: str) -> onnx.TensorProto:
        values = numpy_helper.to_array(self._constants[name])
        half = values.astype(helper.tensor_dtype_to_np_dtype(self._kind))
        return helper.make_tensor(self._other[name], self._kind, values.shape, half.tobytes(), raw=True)
