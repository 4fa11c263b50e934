"""Weights as named tensors: reading and writing files, comparing names and shapes, names of other formats."""
