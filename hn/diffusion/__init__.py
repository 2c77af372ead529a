"""The frozen base model around a hypernetwork: loading, attention, the trained module, the
objective.
"""
