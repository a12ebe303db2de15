"""The batched errors of (candidate, timestep, noise), the only place that calls a network for classification."""
