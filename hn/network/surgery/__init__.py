"""Hypernetworks cut and joined: averaged, added, composed, resized, made linear."""
