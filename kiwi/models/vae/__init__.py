"""The video autoencoder of Wan, its file formats and tiling."""
