"""Benchmarks: from edited videos to scores with intervals. Nothing here needs torch; an editor is handed in."""
