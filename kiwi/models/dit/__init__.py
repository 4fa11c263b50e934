"""The diffusion transformer: blocks, attention, rotary embedding, activation checkpointing, initial weights."""
