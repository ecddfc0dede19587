"""Evidence over PyTorch's own operator database: every operator, every sample, against PyTorch's derivatives."""
