"""Flow matching as pure maths: the noise schedule, the training objective and the solvers."""
