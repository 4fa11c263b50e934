"""Training: Lightning modules around the model, optimizers, callbacks and the objective's schedule."""
