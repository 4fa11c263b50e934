"""Ablations: arms times seeds, trained and measured in pairs, and what their differences are worth."""
