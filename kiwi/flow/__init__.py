"""Flow matching without models: the noise schedule, the training objective and the ODE solvers."""
