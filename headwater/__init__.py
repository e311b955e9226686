"""Headwater: LFM2-family language models on a plain CPU."""
