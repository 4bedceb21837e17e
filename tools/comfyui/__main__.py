"""``python -m tools.comfyui``: writes locales, help pages and example workflows."""

from tools.comfyui import texts, workflows

for name, text in texts.files().items():
    path = texts.ROOT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
workflows.write(texts.ROOT / "example_workflows")
