"""The Triton side: programs for GPUs, and `launch` functions that give them grids and strides.

What is added, compared or exponentiated is float32 right after the load. Only the products of the two attention
programs take what is stored, as the tensor cores want it: a product of two halves is exact in the
float32 in which it is summed.
"""
