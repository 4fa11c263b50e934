"""Media: videos and images to arrays and back, and files that are whole or absent. No torch."""
