"""Evaluation of edits and editors: fidelity to a known target, scores in the sandbox, checks of the oracle."""
