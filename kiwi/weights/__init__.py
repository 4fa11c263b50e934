"""Weights as named tensors: files, strict loading, adapters, and conversion of names between formats."""
