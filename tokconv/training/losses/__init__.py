"""Losses on standardised tokens, [B, K, C] or [B, N, C]: adversarial, distribution, reconstruction, and their sum."""
