"""What no library does in one pass: attention with its map, pooled self-maps, the way from an activation to a feature.

Each is a `torch.library.custom_op` with a plain PyTorch reference, which is what runs on the CPU; on CUDA tensors the
Triton programs of `programs/` run instead. GroupNorm with SiLU is not among them: it is to be built only on the
evidence of a measurement (the compiler's bandwidth in the VAE under 70 % of what the card has), and none has been
made.
"""
