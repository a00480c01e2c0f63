"""zigpass nodes of ONNX files that really skip weights, in onnxruntime on the CPU.

    options = onnxruntime.SessionOptions()
    zigpass.ort.register(options)
    session = onnxruntime.InferenceSession("model.onnx", options)

or, where there is no C compiler but onnxruntime-extensions is installed, `zigpass.ort.session("model.onnx")`.
"""

from .registration import Route, register, session

__all__ = ["Route", "register", "session"]
