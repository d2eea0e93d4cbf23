"""TensorRT's layers: rules, meaning and the call that adds them, one class each."""
