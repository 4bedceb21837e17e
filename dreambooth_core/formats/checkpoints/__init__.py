"""Whole models: single file and diffusers folder, both ways, bit for bit.

The usual doors, imported from their modules so that nothing heavy loads before it is needed::

    from dreambooth_core.formats.checkpoints.single_read import read_single_file
    from dreambooth_core.formats.checkpoints.single_write import write_single_file
    from dreambooth_core.formats.checkpoints.folder import read_folder, write_folder
    from dreambooth_core.formats.checkpoints.build import build, component_of
    from dreambooth_core.formats.checkpoints.read import read_model
"""
