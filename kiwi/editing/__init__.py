"""Editing: a trained model folder applied to a video."""
