"""ONNX: zigpass nodes with bodies in standard ops, written by `export_onnx` and found in files by `import_onnx`."""
