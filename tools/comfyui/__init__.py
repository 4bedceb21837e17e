"""Makes what ComfyUI shows of the nodes: locales, help pages, example workflows.

``python -m tools.comfyui`` writes them all from the nodes' descriptions and the tables here.
"""
