"""Training: one loop for every stage, with the model, the batches and the objective as arguments.

Nothing here imports the model: the loop sees a `torch.nn.Module`, so it serves every variant and every size.
"""
