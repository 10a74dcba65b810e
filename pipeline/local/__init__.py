"""The papers' measurements of local features: probing, patch retrieval, embeddings, and their figures."""
