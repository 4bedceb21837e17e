"""Tiny bases as folders and as the hosts' files."""

from __future__ import annotations

import pytest
from helpers import flow_bases
from helpers.host_bases import Bases

from dreambooth_core.families import flux, hidream, ideogram4, krea2, lumina2, qwen_image, sd3
from dreambooth_core.families.host_files import language as host_language
from dreambooth_core.families.host_files import texts as host_texts
from dreambooth_core.families.host_files import vaes as host_vaes
from dreambooth_core.families.stable_diffusion import text


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no shape tells, as the tiny bases have it."""
    monkeypatch.setattr(host_vaes, "NORM_GROUPS", 4)
    monkeypatch.setattr(text, "HEAD_WIDTH", 16)
    for family in (flux, qwen_image, krea2, lumina2):
        monkeypatch.setattr(family, "AXES", flow_bases.AXES)
    monkeypatch.setattr(hidream, "HEAD", flow_bases.HEAD)
    monkeypatch.setattr(hidream, "MOST", [16, 16])
    monkeypatch.setattr(ideogram4, "MROPE", [4, 2, 2])
    monkeypatch.setattr(ideogram4, "ROPE", 100)
    monkeypatch.setattr(sd3, "HEAD", flow_bases.HEAD)
    monkeypatch.setattr(krea2, "LAYERS", (1, 2, 3))
    monkeypatch.setattr(host_texts, "CLIP_L_LAYERS", 3)
    monkeypatch.setattr(host_language, "QWEN25_HEAD", 16)
    monkeypatch.setattr(host_language, "GEMMA2_HEAD", 16)
    monkeypatch.setattr(host_language, "LLAMA_HEAD", 16)
    plain = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 1024}
    monkeypatch.setattr(host_language, "LLAMA_FACTS", plain)
    monkeypatch.setattr(host_language, "MISTRAL_FACTS", plain)
    monkeypatch.setitem(host_language.QWEN3_FACTS, "rope_theta", 10000.0)
    monkeypatch.setitem(host_language.QWEN3_VL_FACTS, "rope_theta", 500000.0)
    monkeypatch.setitem(host_language.QWEN25_VL_FACTS, "rms_norm_eps", 1e-5)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"))
