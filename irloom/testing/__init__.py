"""What tests of ops, kernels and passes are made of, for irloom's own and for everybody's."""
