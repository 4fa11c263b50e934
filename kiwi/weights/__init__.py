"""Weights as named tensors: reading and writing files, strict loading, adapters, names in other formats."""
