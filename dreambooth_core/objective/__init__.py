"""What is learned: noise, target and weight of a training sample, and the loss.

``Objective`` (``objective.py``) puts the small pure functions of the other modules together;
``Diffusion`` (``diffusion.py``) and ``Flow`` (``flow.py``) are its two kinds.
"""
