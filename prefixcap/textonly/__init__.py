"""Text-only training (MacCap and the methods it compares with): the modality gap, memories, retrieval, VQA."""
