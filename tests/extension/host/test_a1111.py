"""A1111's side: folders, users, models that leave the GPU and come back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import extension
from dreambooth_core.errors import UserError
from extension.host import UnknownHost, a1111, find
from extension.host.a1111 import A1111
from extension.host.reduced import MODULE, Multiple
from extension.service.bases import Bases

Module = Callable[[str], ModuleType]


@pytest.fixture
def checkpoints(module: Module, tmp_path: Path) -> Path:
    folder = tmp_path / "webui" / "models" / "Stable-diffusion"
    module("paths_internal")
    (folder / "deep").mkdir()
    for name in ("a.safetensors", "b.ckpt", "deep/c.safetensors", "broken.safetensors"):
        (folder / name).touch()
    return folder


@pytest.fixture
def host(module: Module, checkpoints: Path) -> A1111:
    found = find()
    assert type(found) is A1111
    return found


def test_its_name_and_folders(host: A1111, tmp_path: Path) -> None:
    assert host.name == "AUTOMATIC1111 1.9.4"
    here = host.folders()
    assert here.home == tmp_path / "webui" / "outputs" / "dreambooth"
    assert here.loras == tmp_path / "webui" / "models" / "Lora"
    assert here.runs.parent == here.home


def test_the_settings_are_asked_each_time(host: A1111, module: Module, tmp_path: Path) -> None:
    shared = module("shared")
    shared.opts.data |= {
        "dreambooth_home": str(tmp_path / "mine"),
        "dreambooth_folders": f"{tmp_path / 'x'}\n\n {tmp_path / 'y'} ",
        "dreambooth_release": "unload",
        "dreambooth_generate": "nonsense",
        "dreambooth_weight": None,
    }
    assert host.folders().home == tmp_path / "mine"
    assert {tmp_path / "x", tmp_path / "y"} <= set(host.folders().allowed)
    chosen = host.settings()
    assert (chosen.release, chosen.generate, chosen.weight) == ("unload", "refuse", 1.0)
    shared.cmd_opts.dreambooth_dir = str(tmp_path / "flag")
    assert host.folders().home == tmp_path / "flag"
    shared.cmd_opts.ckpt_dir = str(tmp_path / "models")
    assert host.folders().checkpoints == tmp_path / "models"


@pytest.mark.parametrize("flag", ["share", "listen", "ngrok", "server_name"])
def test_who_can_reach_it(host: A1111, module: Module, flag: str) -> None:
    options = module("shared").cmd_opts
    assert not host.exposure().remote
    setattr(options, flag, "0.0.0.0" if flag == "server_name" else True)
    assert host.exposure().remote
    options.api_auth, options.gradio_auth = "me:pass:word,you:x", "page:y"
    assert host.exposure().api_users == {"me": "pass:word", "you": "x"}
    assert host.exposure().page_users == {"page": "y"}


def test_checkpoints(host: A1111, checkpoints: Path) -> None:
    names = [one.name for one in host.checkpoints()]
    assert names == ["a.safetensors", "b.ckpt", "broken.safetensors", "deep/c.safetensors"]
    assert host.current_checkpoint() == checkpoints / "a.safetensors"
    host.select_checkpoint(checkpoints / "deep" / "c.safetensors")
    assert host.current_checkpoint() == checkpoints / "deep" / "c.safetensors"
    with pytest.raises(UserError, match="does not list"):
        host.select_checkpoint(checkpoints / "none.safetensors")
    with pytest.raises(UserError, match=r"broken.safetensors: the host cannot load it: Runtime"):
        host.select_checkpoint(checkpoints / "broken.safetensors")


def test_a_host_without_a_checkpoint_offers_what_comes_with_the_engine(
    host: A1111, checkpoints: Path, tmp_path: Path
) -> None:
    """The host raises where it has none: the list must not."""
    for path in checkpoints.rglob("*.*"):
        path.unlink()
    assert host.checkpoints() == [] and host.current_checkpoint() is None
    bases = Bases(tmp_path, host)
    assert [base.name for base in bases.all()] == ["pocket", "pocket-flow"]
    assert bases.current().name == "pocket"


def test_selecting_waits_until_the_host_has_loaded(
    host: A1111, module: Module, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first model comes in a thread of its own, with a lock of its own."""
    lock, path = module("sd_models").model_data.lock, checkpoints / "b.ckpt"
    lock.acquire()
    with monkeypatch.context() as impatient:
        impatient.setattr(a1111, "LOADING", 0.01)
        with pytest.raises(UserError, match="still loading a model"):
            host.select_checkpoint(path)
    threading.Timer(0.1, lock.release).start()
    host.select_checkpoint(path)
    assert host.current_checkpoint() == path


@pytest.mark.parametrize(("how", "device"), [("ram", "cpu"), ("unload", "meta")])
def test_its_model_leaves_and_comes_back(
    host: A1111, module: Module, how: str, device: str
) -> None:
    models = module("sd_models")
    model = models.load_model()
    words = host.release(how)
    assert words.startswith("a ")
    assert model.device == device
    assert host.current_checkpoint().name == "a.safetensors"  # type: ignore[union-attr]
    assert host.release(how) == words  # again changes nothing
    host.restore()
    host.restore()
    assert models.model_data.sd_model.device == "gpu"
    assert models.loads == ["a.safetensors"] * (2 if how == "unload" else 1)


def test_before_it_has_a_model_nothing_is_released(host: A1111, module: Module) -> None:
    assert host.release("unload") == ""
    host.restore()
    assert module("sd_models").loads == []


def test_a_model_that_cannot_come_back_is_loaded_when_it_is_needed(
    host: A1111, module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = module("sd_models")
    models.load_model()
    host.release("unload")

    def fail(info: Any = None) -> None:
        raise MemoryError

    monkeypatch.setattr(models, "load_model", fail)
    with pytest.raises(MemoryError):
        host.restore()
    assert models.model_data.was_loaded_at_least_once is False
    host.restore()  # it is not tried for ever


def test_it_waits_for_the_picture_in_the_making(host: A1111, module: Module) -> None:
    models, lock = module("sd_models"), module("call_queue").queue_lock
    model = models.load_model()
    with lock:
        thread = threading.Thread(target=host.release, args=("ram",))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and model.device == "gpu"
    thread.join(5)
    assert model.device == "cpu"


def test_the_gate(host: A1111, module: Module) -> None:
    models = module("sd_models")
    original = models.reload_model_weights
    models.load_model()
    asked: list[bool] = []

    def refuse() -> None:
        asked.append(True)
        raise RuntimeError("training")

    host.guard(refuse)
    host.release("ram")
    with pytest.raises(RuntimeError, match="training"):
        models.reload_model_weights()
    assert models.model_data.sd_model.device == "cpu"
    host.guard(lambda: asked.append(False))  # the last gate is the only one
    models.reload_model_weights()
    assert asked == [True, False]
    assert models.model_data.sd_model.device == "gpu"  # who may generate needs the model
    host.guard(None)
    host.guard(None)
    assert models.reload_model_weights is original


def test_the_gates_of_others_are_left_alone(host: A1111, module: Module) -> None:
    models = module("sd_models")
    models.load_model()
    host.guard(lambda: None)
    ours = models.reload_model_weights
    theirs = models.reload_model_weights = lambda *given: ours(*given)
    host.guard(None)
    assert models.reload_model_weights is theirs
    theirs()
    asked: list[bool] = []
    host.guard(lambda: asked.append(True))
    theirs()
    assert asked == [True]


def test_a_model_thrown_away_comes_back_through_an_open_gate(host: A1111, module: Module) -> None:
    models = module("sd_models")
    models.load_model()
    host.release("unload")
    host.guard(lambda: None)
    assert models.reload_model_weights().device == "gpu"
    host.guard(None)
    host.restore()
    assert len(models.loads) == 2


def test_networks_are_listed_anew(host: A1111, monkeypatch: pytest.MonkeyPatch) -> None:
    host.refresh_networks()  # without the LoRA extension nothing happens
    networks = ModuleType("networks")
    listed: list[bool] = []
    networks.list_available_networks = lambda: listed.append(True)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "networks", networks)
    host.refresh_networks()
    assert listed == [True]
    assert host.network_tag("dog", 0.75) == "<lora:dog:0.75>"


def test_widths_that_are_no_whole_multiples(host: A1111) -> None:
    assert MODULE in sys.modules
    product = Multiple(1.5) * 64, 64 * Multiple(1.5)
    assert product == (96, 96) and all(type(width) is int for width in product)


def test_settings_page(host: A1111, module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    gradio = ModuleType("gradio")
    gradio.Textbox = gradio.Radio = gradio.Number = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    host.on_settings()
    module("script_callbacks").call("ui_settings")
    labels = module("shared").opts.data_labels
    assert {info.section for info in labels.values()} == {("dreambooth", "DreamBooth")}
    assert labels["dreambooth_release"].component_args["choices"] == ["ram", "unload", "keep"]
    assert host.settings().release == "ram"
    places = {name for name, info in labels.items() if info.restrict_api}
    assert places == {"dreambooth_home", "dreambooth_folders"}  # not by the host's API


def test_a_host_that_lacks_something_gets_a_line(
    module: Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(module("sd_models"), "send_model_to_cpu")
    told: list[str] = []
    gradio = ModuleType("gradio")
    gradio.Blocks = lambda **_: nullcontext("page")  # type: ignore[attr-defined]
    gradio.HTML = told.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    extension.register(Path("nowhere"))
    assert "this WebUI lacks sd_models.send_model_to_cpu; A1111 1.6 to 1.10" in caplog.text
    tabs = module("script_callbacks").call("ui_tabs")
    assert tabs == [[("page", "DreamBooth", "dreambooth")]]
    assert "lacks sd_models.send_model_to_cpu" in told[0], "the page says it too"
    monkeypatch.delattr(module("script_callbacks"), "on_ui_tabs")
    with pytest.raises(UnknownHost, match=r"lacks script_callbacks\.on_ui_tabs"):
        find()
    extension.register(Path("nowhere"))  # without tabs nothing is shown


def test_no_host_at_all_gets_a_line(caplog: pytest.LogCaptureFixture) -> None:
    extension.register(Path("nowhere"))
    assert "WebUI is not known here" in caplog.text
