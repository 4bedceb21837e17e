"""Pictures, captions, batches and caches: what a training step is fed with.

``inventory`` takes stock of a folder (``decode`` knows the file formats), ``images`` turns a
picture into tensors (``views`` has the geometry), ``buckets`` chooses sizes, ``captions`` writes
the prompts, ``plan`` says which picture is in which batch, ``concepts`` and ``items`` tie them
together, ``latents`` and ``texts`` keep what the encoders made, ``prior`` keeps the class images.
"""
