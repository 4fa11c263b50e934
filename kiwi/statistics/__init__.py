"""Intervals around what was measured, without torch."""
