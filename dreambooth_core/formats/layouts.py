"""How the layers of an adapter can be named in its file. Standard library only."""

LAYOUTS = ("host", "kohya", "comfyui", "diffusers", "peft")
