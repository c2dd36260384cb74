"""Models: kernels, layers, mixers, blocks, whole models, and sampling from them. Knows no text."""
