"""Training: LightningModules, optimizers, callbacks, checkpoints, and the functions behind `kiwi fit`."""
