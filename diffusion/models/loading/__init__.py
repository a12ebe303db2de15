"""Weights and configs: files, the hub, tokenizers, adapters."""
