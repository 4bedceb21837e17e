"""Serves the extension's tab as the WebUI does: ``python webui.py EXTENSION --port 7860``.

Runs in an environment with the host's gradio. The page has a prompt of txt2img beside the tab;
POST /stand-in/reload does what Reload UI does.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import gradio as gr  # noqa: E402
import gradio.routes  # noqa: E402
from modules import script_callbacks  # noqa: E402

# Every host has it; the extension asks it for a GPU alone, and here is none.
sys.modules.setdefault("torch", types.ModuleType("torch"))

reloading = threading.Event()
original_response = gradio.routes.templates.TemplateResponse


def load_scripts(extension: Path) -> None:
    """Runs the extension's scripts, with its folder on the path only meanwhile."""
    sys.path.insert(0, str(extension))
    try:
        for script in sorted((extension / "scripts").glob("*.py")):
            runpy.run_path(str(script))
    finally:
        sys.path.remove(str(extension))


def put_into_page(extension: Path, language: str) -> None:
    """Adds scripts, styles and translations to the page, as the WebUI does."""
    file = extension / "localizations" / f"{language}.json"
    words = json.loads(file.read_text(encoding="utf-8")) if language else {}
    scripts = [HERE / "page.js", *sorted((extension / "javascript").glob("*.js"))]
    head = f"<script>window.localization = {json.dumps(words)}</script>"
    head += "".join(f"<script>{path.read_text(encoding='utf-8')}</script>" for path in scripts)
    style = f"<style>{(extension / 'style.css').read_text(encoding='utf-8')}</style>"

    def respond(*given: Any, **named: Any) -> Any:
        response = original_response(*given, **named)
        body = response.body.replace(b"</head>", f"{head}</head>".encode())
        response.body = body.replace(b"</body>", f"{style}</body>".encode())
        response.init_headers()
        return response

    gradio.routes.templates.TemplateResponse = respond


def create_ui() -> gr.Blocks:
    """All tabs. The extension's are drawn by themselves first, as in the WebUI."""
    tabs = [tab for found in script_callbacks.call("ui_tabs") for tab in found]
    demo = gr.Blocks(title="Stable Diffusion", analytics_enabled=False)
    with demo, gr.Tabs(elem_id="tabs"):
        with gr.TabItem("txt2img", id="txt2img", elem_id="tab_txt2img"):
            gr.Textbox(label="Prompt", elem_id="txt2img_prompt", lines=3)
        for blocks, title, name in tabs:
            with gr.TabItem(title, id=name, elem_id=f"tab_{name}"):
                blocks.render()
    return demo


def remembered(block: Any) -> list[str]:
    """What the WebUI would write into ui-config.json of a tab, and read before our defaults."""
    found = []
    if getattr(block, "do_not_save_to_config", False):
        found = []
    elif hasattr(block, "children"):
        found = [block.elem_id] if isinstance(block, gr.Tabs) and block.elem_id else []
    elif not isinstance(block, (gr.HTML, gr.State)):
        found = [str(block.label or block.value)]
    return found + [name for child in getattr(block, "children", ()) for name in remembered(child)]


def serve(extension: Path, port: int, language: str) -> None:
    """Serves until the process ends."""
    while True:
        script_callbacks.clear_callbacks()
        load_scripts(extension)
        script_callbacks.call("ui_settings")
        put_into_page(extension, language)
        demo = create_ui()
        demo.queue(64) if gr.__version__.startswith("3") else demo.queue()
        app, _, _ = demo.launch(server_port=port, prevent_thread_lock=True, quiet=True)
        app.add_api_route("/stand-in/reload", reloading.set, methods=["POST"])
        ours = [found for tab in demo.children[0].children[1:] for found in remembered(tab)]
        script_callbacks.call("app_started", demo, app)
        app.add_api_route("/stand-in/remembered", lambda found=ours: {"names": found})
        reloading.clear()
        reloading.wait()
        time.sleep(0.2)  # the answer is still on its way
        script_callbacks.call("before_reload")
        demo.close()
        script_callbacks.call("script_unloaded")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("extension", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--language", default="")
    args = parser.parse_args()
    serve(args.extension.resolve(), args.port, args.language)


if __name__ == "__main__":
    main()
