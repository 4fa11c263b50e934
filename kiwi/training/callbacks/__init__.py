"""Training callbacks: previews, model export, edit quality, sandbox edits before and after training, metrics."""
