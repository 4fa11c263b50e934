"""Data: from data sources (manifests, the sandbox) to homogeneous batches of edits."""
