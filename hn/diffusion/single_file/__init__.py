"""Base models in single files, as most of them are shared: read without a network."""
