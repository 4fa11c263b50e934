"""Model folders and the published formats: saving, strict loading, conversion."""
