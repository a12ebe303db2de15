"""Diffusion Transformers (arXiv 2212.09748): the network, its Gaussian process with a learned variance, and checkpoint loading.

Written from the papers; the parameter names are those of the published checkpoints, so that these load strictly.
"""
