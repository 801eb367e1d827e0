"""The author's bench: turns an ordinary ONNX file into a trainable model bundle."""
