"""Pictures, captions, batches and caches: what a training step is fed with.

``inventory`` takes stock of a folder (``decode`` knows the file formats), ``images`` turns a
picture into tensors, ``buckets`` chooses sizes, ``captions`` writes prompts, ``plan`` says which
picture is in which batch and how it is cut, ``concepts`` and ``items`` tie them together, ``cache``
keeps what the encoders made, ``prior`` keeps the class images.
"""
