"""Images, captions, batches and caches: what a training step is fed with.

``stocktaking`` looks through a folder (``decode`` knows the file formats) and makes its
``inventory``, ``images`` turns an image into tensors, ``buckets`` chooses sizes, ``captions``
writes prompts, ``plan`` says which image is in which batch and how it is cut, ``concepts`` and
``items`` tie them together, ``cache`` keeps what the encoders made, ``prior`` keeps the class
images.
"""
