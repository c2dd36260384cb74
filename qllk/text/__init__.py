"""Text: tokenizers, corpora, windows, training objectives, synthetic tasks. Knows no model."""
