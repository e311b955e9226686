"""The operators of the network, one per file: first the plain form that says what is computed, then the fast one.

Shapes in names: b rows, t new tokens, s tokens seen, d hidden, h query heads, g KV heads, k conv width, e experts.
"""
