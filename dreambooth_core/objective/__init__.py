"""What is learned: noise, target and weight of a training sample, and the loss.

``objective`` has what both kinds share; ``diffusion`` and ``flow`` are the kinds.
"""
