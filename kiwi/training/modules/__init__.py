"""Lightning modules: what is trained, by which loss, and how it is validated."""
