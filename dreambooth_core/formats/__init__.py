"""Model files: reading, writing, recognising and converting them.

- ``storage``: safetensors and other files, read through memory maps and written whole or not at all
- ``detect``: what a file or folder is
- ``tokenizers``: CLIP tokenizers without a network
- ``pickles``: pickled checkpoints, opened without running what they hold
- ``checkpoints``: whole models, single file and diffusers folder
- ``adapters``: LoRA and its relatives
"""
