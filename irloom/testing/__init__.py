"""What tests of ops, kernels and passes are made of, for irloom's own and for everybody's.

    from irloom.testing import check_kernel, check_op

    def test_square_gate():
        check_op(square_gate)
        check_kernel(square_gate)

Passes are tested by programs in Markdown, which the pytest plugin collects: see ``irloom.testing.markdown``.
"""

from irloom.testing.kernels import check_kernel
from irloom.testing.ops import check_op

__all__ = ["check_kernel", "check_op"]
