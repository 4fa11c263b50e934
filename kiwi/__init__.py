"""kiwi: train, ablate and evaluate video editors that follow an instruction and a reference image."""

__version__ = "0.1.0"
