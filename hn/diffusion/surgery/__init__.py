"""Hypernetworks taken into the base model's own weights, or into files for other programs."""
