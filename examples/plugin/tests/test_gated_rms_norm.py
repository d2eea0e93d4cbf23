"""The body against the signature, and the kernel against the body."""

from gated_norm.gated_rms_norm import gated_rms_norm

from irloom.testing import check_kernel, check_op

CHOICES = {"groups": [1, 2], "norm_first": [False, True]}


def test_the_body_does_what_the_signature_says():
    check_op(gated_rms_norm, **CHOICES)


def test_the_kernel_does_what_the_body_says():
    check_kernel(gated_rms_norm, **CHOICES)
