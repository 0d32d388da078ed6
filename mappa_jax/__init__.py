"""Fine-tuning teams of language-model agents, in JAX."""
