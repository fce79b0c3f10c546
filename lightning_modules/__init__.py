"""LightningModules: one per method, on one shared base class."""
