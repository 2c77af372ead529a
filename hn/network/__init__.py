"""The hypernetwork itself: its mathematics and its files. Knows torch and safetensors, nothing of
diffusion.
"""
