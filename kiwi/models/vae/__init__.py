"""The video autoencoder: Wan's, its formats and tiling."""
