"""The 1 024 features of open_nsfw before its answer, in the peers' environment (it needs the package onnx):
`_opennsfw_features.py MODEL.onnx IN.npy OUT.npy N`. IN: float32 (N, 224, 224, 3) as emu_data.signals.safety.prepare
makes them, a memory map, of which the first N are used. OUT: float32 (N, 1024).
"""

import sys

import numpy as np
import onnx
import onnxruntime

FEATURES = "Reshape:0"  # what goes into the last layer of open-nsfw.onnx


def main(model: str, given: str, out: str, num: str) -> None:
    graph = onnx.load(model)
    graph.graph.output.append(onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    pictures = np.load(given, mmap_mode="r")
    np.save(
        out, np.concatenate([np.asarray(session.run([FEATURES], {name: one[None]})[0]) for one in pictures[: int(num)]])
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
