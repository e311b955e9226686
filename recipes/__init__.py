"""Recipes: what we really ran, one file a model. Plain Python over the library, for reading and for changing."""
