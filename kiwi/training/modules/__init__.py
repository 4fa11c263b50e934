"""Lightning modules: the editor, its pretrained parts, and how they are trained and validated."""
