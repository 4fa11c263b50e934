"""The sandbox: a rendered world of video edits with exact ground truth. No torch."""
