"""Devices, memory, compilation, and what candidates share."""
