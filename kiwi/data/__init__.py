"""Data: manifests in, homogeneous batches of edits out."""
