"""The TensorRT target: networks of TensorRT's own layers, plans that are checked before they are opened."""
