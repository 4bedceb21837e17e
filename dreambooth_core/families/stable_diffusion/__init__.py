"""Stable Diffusion 1, 2 and XL: single file and diffusers folder, both ways, bit for bit.

The usual doors, imported from their modules so that nothing heavy loads before it is needed::

    from dreambooth_core.families.stable_diffusion.read import read_model
    from dreambooth_core.families.stable_diffusion.folder import read_folder, write_folder
    from dreambooth_core.families.stable_diffusion.single_read import read_single_file
    from dreambooth_core.families.stable_diffusion.single_write import write_single_file
    from dreambooth_core.families.stable_diffusion.build import build
"""
