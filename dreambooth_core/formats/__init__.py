"""Model files, whichever family they are of: reading, writing and changing them.

- ``storage``: safetensors and other files, read through memory maps and written whole or not at all
- ``pickles``: pickled checkpoints, opened without running what they hold
- ``gguf``, ``eight_bits``, ``quantised``: weights in fewer bits
- ``checkpoints``: the parts of whole models, and between two layouts
- ``adapters``: LoRA and its relatives

What a file is, and what its tensors are called, lies with the families.
"""
