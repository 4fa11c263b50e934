"""Confidence intervals, paired tests, random-effects means and rater agreement, with NumPy and SciPy only."""
