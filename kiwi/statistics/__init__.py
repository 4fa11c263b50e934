"""Confidence intervals, paired tests, random-effects means and agreement; NumPy and SciPy, no torch."""
