"""LightningModules that train and validate the editor and its pretrained parts."""
