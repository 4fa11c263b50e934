"""Callbacks of training: previews, exported models, quality of edits, metrics."""
