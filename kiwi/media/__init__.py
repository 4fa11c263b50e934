"""Media: reading and writing of videos, images and files, without torch. Writes are atomic."""
