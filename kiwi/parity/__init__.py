"""Numeric parity with the published model: golden vectors in, one line a case out."""
