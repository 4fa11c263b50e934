"""The sandbox: a rendered world of video edits with exact ground truth. It does not import torch."""
