"""Which files of a model's folder or repository are read: names as `fnmatch` takes them."""

# Weights in other frameworks' formats, which are never loaded.
IGNORED = ("*.h5", "*.msgpack", "*.onnx", "*.ot", "*.tflite", "onnx/*", "openvino/*", "coreml/*")
TOKENIZER = (
    "*token*",
    "vocab*",
    "merges*",
    "*.model",
    "config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
