"""The fast engine: a model as an ONNX graph, checked, and generation with it."""
