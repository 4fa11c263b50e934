"""The diffusion transformer: blocks, attention, rotary positions, activation checkpointing, base weights."""
