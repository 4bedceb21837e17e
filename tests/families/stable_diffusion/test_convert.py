"""What a conversion can change on the way: precision, EMA, VAE, scheduler, prediction, extras."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.reduced_models import random_tensors, reduced_parts
from safetensors.torch import load_file, save_file

from dreambooth_core.bases.embedded import embedded_folder
from dreambooth_core.commands.main import main
from dreambooth_core.errors import UserError
from dreambooth_core.families.stable_diffusion import single_layout, vae
from dreambooth_core.families.stable_diffusion.folder import read_folder, write_folder
from dreambooth_core.families.stable_diffusion.ldm_yaml import find_yaml, read_yaml
from dreambooth_core.families.stable_diffusion.parts import resolution_of
from dreambooth_core.families.stable_diffusion.prediction import find
from dreambooth_core.families.stable_diffusion.scheduler import default_scheduler, with_scheduler
from dreambooth_core.families.stable_diffusion.single_read import OWN_KEY, read_single_file
from dreambooth_core.families.stable_diffusion.single_write import write_single_file
from dreambooth_core.formats import storage
from dreambooth_core.formats.checkpoints.pairs import to_single

POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def convert(*arguments) -> int:
    return main(["convert", *map(str, arguments)])


@pytest.fixture
def sd1(tmp_path):
    path = tmp_path / "sd1.safetensors"
    write_single_file(reduced_parts("sd1"), path)
    return path


@pytest.mark.parametrize(("flag", "dtype"), [("--half", torch.float16), ("--bf16", torch.bfloat16)])
def test_precision(tmp_path, sd1, flag, dtype):
    assert convert(sd1, tmp_path / "b.safetensors", flag) == 0
    source, cast = load_file(sd1), load_file(tmp_path / "b.safetensors")
    assert cast[POSITIONS].dtype == torch.int64
    for name, tensor in source.items():
        if name != POSITIONS:
            assert torch.equal(cast[name], tensor.to(dtype))
    assert convert(sd1, tmp_path / "folder", flag) == 0
    tensors = read_folder(tmp_path / "folder").components["unet"].tensors
    assert {t.dtype for t in tensors.values()} == {dtype}


def test_ema_is_chosen_or_dropped(tmp_path, sd1):
    tensors = load_file(sd1)
    unet = single_layout.under(tensors, single_layout.UNET)
    averages = {single_layout.ema_name(name): t + 1 for name, t in unet.items()}
    assert "model_ema.diffusion_modelinput_blocks00weight" in averages
    path = tmp_path / "full.safetensors"
    storage.write_tensors(path, {**tensors, **averages}, storage.read_metadata(sd1))
    out = tmp_path / "out.safetensors"
    assert convert(path, out) == 0
    assert load_file(out).keys() == tensors.keys()
    assert convert(path, out, "--ema") == 0
    taken = single_layout.under(load_file(out), single_layout.UNET)
    assert all(torch.equal(taken[name], t + 1) for name, t in unet.items())
    assert convert(path, out, "--keep_extra") == 0
    assert load_file(out).keys() == {**tensors, **averages}.keys()
    del averages["model_ema.diffusion_modelout2bias"]
    storage.write_tensors(path, {**tensors, **averages}, storage.read_metadata(sd1))
    with pytest.raises(UserError, match="EMA weights are incomplete"):
        read_single_file(path, ema=True)
    with pytest.raises(UserError, match="no EMA weights"):
        read_single_file(sd1, ema=True)


@pytest.mark.parametrize(
    "form", ["single names", "diffusers names", "old names", "folder", "model"]
)
def test_the_vae_is_replaced(tmp_path, sd1, form):
    made = reduced_parts("sd1")
    config = made.components["vae"].config
    tensors = random_tensors("vae", config, seed=99)
    source = tmp_path / "vae.safetensors"
    if form == "single names":
        plan = vae.plan_from_config(config)
        storage.write_tensors(source, to_single(vae.pairs_of(plan), tensors, "here"))
    elif form == "diffusers names":
        save_file(tensors, source)
    elif form == "old names":
        save_file({old_name(k): t.contiguous() for k, t in tensors.items()}, source)
    else:
        made.components["vae"].tensors = tensors
        write_folder(made, tmp_path / "other")
        source = tmp_path / "other" / ("vae" if form == "folder" else ".")
    assert convert(sd1, tmp_path / "out.safetensors", "--vae", source) == 0
    read = read_single_file(tmp_path / "out.safetensors").components["vae"]
    assert read.tensors.keys() == tensors.keys()
    assert all(torch.equal(read.tensors[k], t) for k, t in tensors.items())
    assert read.config["scaling_factor"] == config["scaling_factor"]


def old_name(name: str) -> str:
    for old, new in vae._OLD_ATTENTION:
        if ".attentions." in name:
            name = name.replace(new, old)
    return name


def test_a_file_without_vae_needs_one(tmp_path, sd1, capsys):
    tensors = {k: t for k, t in load_file(sd1).items() if not k.startswith("first_stage_model.")}
    path = tmp_path / "novae.safetensors"
    storage.write_tensors(path, tensors, storage.read_metadata(sd1))
    assert convert(path, tmp_path / "out.safetensors") == 2
    assert "no VAE in this model. Give one with --vae" in capsys.readouterr().err
    assert convert(path, tmp_path / "out.safetensors", "--vae", sd1) == 0
    assert load_file(tmp_path / "out.safetensors").keys() == load_file(sd1).keys()


def test_scheduler_and_size(tmp_path, sd1):
    arguments = ["--scheduler_type", "euler-ancestral", "--image_size", "128"]
    assert convert(sd1, tmp_path / "folder", *arguments) == 0
    read = read_folder(tmp_path / "folder")
    assert read.scheduler["_class_name"] == "EulerAncestralDiscreteScheduler"
    assert (resolution_of(read), read.components["unet"].config["sample_size"]) == (128, 16)


def test_schedulers_that_cannot_reach_pure_noise_are_refused():
    config = default_scheduler("sd1", "v_prediction", zero_terminal_snr=True)
    assert config["_class_name"] == "DDIMScheduler" and config["timestep_spacing"] == "trailing"
    assert with_scheduler(config, "euler")["rescale_betas_zero_snr"]
    with pytest.raises(UserError, match=r"heun cannot sample.*Choose one of ddim, "):
        with_scheduler(config, "heun")
    with pytest.raises(UserError, match="no scheduler is called 'magic'"):
        with_scheduler(config, "magic")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_velocity_is_written_down_for_every_host(tmp_path, family):
    made = reduced_parts(family, prediction_type="v_prediction", zero_terminal_snr=True)
    write_single_file(made, tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    assert {"v_pred", "ztsnr"} <= tensors.keys()
    metadata = storage.read_metadata(tmp_path / "a.safetensors")
    assert metadata["modelspec.prediction_type"] == "v"
    assert read_yaml(tmp_path / "a.yaml").prediction_type == "v_prediction"
    for clue in ("markers", "yaml", "metadata"):  # each alone is enough
        rest = dict(tensors)
        if clue != "markers":
            rest = {k: t for k, t in rest.items() if k not in ("v_pred", "ztsnr")}
        found = find(
            family,
            rest if clue == "markers" else {},
            yaml="v_prediction" if clue == "yaml" else None,
            metadata=metadata if clue == "metadata" else {},
        )
        assert found == "v_prediction"


def test_epsilon_leaves_no_marks(tmp_path, sd1):
    assert not {"v_pred", "ztsnr"} & load_file(sd1).keys()
    assert storage.read_metadata(sd1)["modelspec.prediction_type"] == "epsilon"


def test_a_silent_sd2_file_is_asked_about(tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    write_single_file(reduced_parts("sd2"), path)
    metadata = storage.read_metadata(path)
    own = json.loads(metadata[OWN_KEY])
    del own["scheduler"], metadata["modelspec.prediction_type"]
    del metadata["modelspec.architecture"]
    storage.write_tensors(path, load_file(path), {**metadata, OWN_KEY: json.dumps(own)})
    (tmp_path / "a.yaml").unlink()
    assert convert(path, tmp_path / "folder") == 2
    error = capsys.readouterr().err
    assert "noise or velocity" in error and "--prediction_type" in error and error.count("\n") == 1
    assert convert(path, tmp_path / "folder", "--prediction_type", "v_prediction") == 0
    assert read_folder(tmp_path / "folder").prediction_type == "v_prediction"


def test_the_hint_for_a_full_size_sd2_is_the_hosts_own_rule():
    probe = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    for spread, word in ((0.2, "v_prediction"), (0.02, "epsilon")):
        tensors = {probe: torch.randn(320, generator=torch.Generator().manual_seed(0)) * spread}
        with pytest.raises(UserError, match=f"its weights look like {word}"):
            find("sd2", tensors)
    assert find("sd2", {}, global_step=110000) == "v_prediction"
    assert find("sd2", {}, global_step=875000) == "epsilon"
    assert (
        find("sd2", {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1, 9)})
        == "epsilon"
    )
    with pytest.raises(UserError, match="unknown prediction type 'x'"):
        find("sd1", {}, asked="x")


@pytest.mark.parametrize("old", ["no text_model", "float positions"])
def test_text_encoders_as_other_programs_write_them(tmp_path, sd1, old):
    tensors = load_file(sd1)
    if old == "no text_model":
        tensors = {
            k.replace("transformer.text_model.", "transformer."): t for k, t in tensors.items()
        }
    else:
        tensors[POSITIONS] = tensors[POSITIONS].half()
    storage.write_tensors(tmp_path / "b.safetensors", tensors, storage.read_metadata(sd1))
    assert convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors") == 0
    there, back = load_file(sd1), load_file(tmp_path / "c.safetensors")
    assert there.keys() == back.keys() and all(torch.equal(there[k], back[k]) for k in there)


def test_a_folder_saved_by_transformers_5_without_prefix(tmp_path):
    made = reduced_parts("sd1")
    write_folder(made, tmp_path / "folder")
    path = tmp_path / "folder" / "text_encoder" / "model.safetensors"
    save_file({k.removeprefix("text_model."): t for k, t in load_file(path).items()}, path)
    read = read_folder(tmp_path / "folder").components["text_encoder"]
    assert read.tensors.keys() == made.components["text_encoder"].tensors.keys()


def test_shards_variants_and_bins_are_read(tmp_path):
    made = reduced_parts("sd1")
    folder = tmp_path / "folder"
    write_folder(made, folder)
    unet = made.components["unet"].tensors
    names = sorted(unet)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    shards = {f"part-{i}.safetensors": names[i::2] for i in range(2)}
    for file, keys in shards.items():
        save_file({k: unet[k] for k in keys}, folder / "unet" / file)
    index = {"weight_map": {k: file for file, keys in shards.items() for k in keys}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps(index)
    )
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(made.components["vae"].tensors, folder / "vae" / "diffusion_pytorch_model.bin")
    text = folder / "text_encoder"
    (text / "model.safetensors").rename(text / "model.fp16.safetensors")
    read = read_folder(folder, variant="fp16")
    for name, part in made.components.items():
        assert all(
            torch.equal(read.components[name].tensors[k], t) for k, t in part.tensors.items()
        )


def test_metadata_is_kept_and_added(tmp_path, sd1):
    kept = {**storage.read_metadata(sd1), "ss_tag_frequency": "{}", "sshs_model_hash": "old"}
    storage.write_tensors(tmp_path / "b.safetensors", load_file(sd1), kept)
    out = tmp_path / "c.safetensors"
    arguments = ["--title", "My dog", "--metadata", "trigger=sks dog"]
    assert convert(tmp_path / "b.safetensors", tmp_path / "folder") == 0
    assert convert(tmp_path / "folder", out, *arguments) == 0
    metadata = storage.read_metadata(out)
    assert metadata["ss_tag_frequency"] == "{}" and "sshs_model_hash" not in metadata
    assert metadata["modelspec.title"] == "My dog" and metadata["trigger"] == "sks dog"
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert metadata["modelspec.resolution"] == "64x64"


def test_the_report(tmp_path, sd1, capsys):
    assert convert(sd1, tmp_path / "b.safetensors", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["family"], report["inpainting"]) == ("checkpoint", "sd1", False)
    assert [str(tmp_path / "b.yaml") in report["files"], report["warnings"]] == [True, []]


def test_unusual_groups_are_warned_about(tmp_path):
    made = reduced_parts("sd1")
    made.components["unet"].config["norm_num_groups"] = 16
    written = write_single_file(made, tmp_path / "a.safetensors")
    assert "norm_num_groups = 16; other programs assume 32" in written.warnings[0]
    read = read_single_file(tmp_path / "a.safetensors")
    assert read.components["unet"].config["norm_num_groups"] == 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["SELF"], "the target is the source"),
        (["out.txt.safetensors", "--image_size", "63"], "not a multiple of 8"),
        (["out.safetensors", "--metadata", "x"], "KEY=VALUE"),
        (["out.safetensors", "--layout", "kohya"], "--layout is for adapters"),
        (["out.safetensors", "--original_config_file", "none.yaml"], "none.yaml: no such file"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, sd1, capsys, arguments, words):
    target = sd1 if arguments[0] == "SELF" else tmp_path / arguments[0]
    assert convert(sd1, target, *arguments[1:]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_known_yaml_need_not_be_there(tmp_path, sd1, capsys):
    known = find_yaml(sd1, "somewhere/v1-inference.yaml")
    assert known is not None
    assert (known.family, known.num_heads, known.prediction_type) == ("sd1", 8, "epsilon")
    assert find_yaml(sd1, "v2-inference-v.yaml").prediction_type == "v_prediction"
    for name, told in {
        "v2-inference-v.yaml": "v2-inference-v.yaml is for sd2, and this is sd1",
        "v3.yaml": "v3.yaml: no such file",
    }.items():
        assert convert(sd1, tmp_path / "folder", "--original_config_file", name) == 2
        assert told in capsys.readouterr().err
    # One that is there is read, whatever its name.
    (tmp_path / "v1-inference.yaml").write_text("model: [1, 2]")
    with pytest.raises(UserError, match="not a Stable Diffusion configuration"):
        find_yaml(sd1, tmp_path / "v1-inference.yaml")


def test_a_yaml_of_another_kind(tmp_path):
    (tmp_path / "a.yaml").write_text("model: [1, 2]")
    with pytest.raises(UserError, match="not a Stable Diffusion configuration"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("a: [1, 2")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "b.yaml")


def test_widths_that_are_no_whole_multiples_ask_for_our_extension(tmp_path):
    """pocket's 64, 64, 96, 96: latent diffusion's own class takes whole multiples alone."""
    assert convert(embedded_folder(), tmp_path / "pocket.safetensors") == 0
    text = (tmp_path / "pocket.yaml").read_text(encoding="utf-8")
    assert "target: dreambooth_reduced.UNetModel" in text
    said = read_yaml(tmp_path / "pocket.yaml")
    assert said.unet["channel_mult"] == [1, 1, 1.5, 1.5]
    back = read_single_file(tmp_path / "pocket.safetensors")
    assert back.components["unet"].config["block_out_channels"] == [64, 64, 96, 96]
