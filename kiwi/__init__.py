"""kiwi: train, take apart and measure video editors guided by an instruction and a reference image."""

__version__ = "0.1.0"
