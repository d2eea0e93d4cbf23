"""The IR: types, ops, functions, their text, verifier, reference interpreter, weights and plans.

Its modules are its door: ``irloom.ir.ops`` has the ops, ``irloom.ir.graph`` modules and functions,
``irloom.ir.parse`` and ``irloom.ir.show`` their text. What plugin authors need is also in ``irloom`` itself.
"""
