"""Expressions to embeddings: tokenizer, encoder, caches."""
