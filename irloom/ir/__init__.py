"""The IR: types, ops, functions, their text, verifier, reference interpreter, weights and plans."""
